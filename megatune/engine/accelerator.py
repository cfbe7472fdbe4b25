"""The device of a rank, and whether torch can use the GPUs that the machine has."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from megatune.errors import ConfigError, LaunchError
from megatune.launch.devices import gpu_driver_version


def own_device(local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """The device that DeepSpeed trains on in this process: its own GPU, or the CPU.

    Raises LaunchError when the ranks of this machine are more than the GPUs they see.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    index = device_index(local_rank, local_world_size, num_visible=accelerator.device_count())
    return torch.device(accelerator.device_name(index))


def device_index(local_rank: int, local_world_size: int, *, num_visible: int) -> int:
    """The number of this rank's GPU among the `num_visible` that its process sees.

    All GPUs of the node are visible with --gpus-per-node and --gres, one with --gpus-per-task: then it
    is number 0 for every rank. That two ranks were given the same one is found by NCCL.

    >>> device_index(3, 4, num_visible=4), device_index(3, 4, num_visible=1)
    (3, 0)
    """
    if num_visible >= local_world_size:
        return local_rank
    if num_visible == 1:
        return 0
    raise LaunchError(
        f"{local_world_size} ranks on this node see {num_visible} GPU(s) each. Let each see all of the node's "
        "(srun --gpus-per-node) or only its own (srun --gpus-per-task=1), and start one rank for each GPU."
    )


def refuse_unusable_gpus(num_gpus: int) -> None:
    """Raise ConfigError when the machine has `num_gpus` GPUs and torch cannot use them.

    Without this the run would be laid out over the GPUs and then train on the CPU without a word.
    """
    if num_gpus == 0:
        return
    with warnings.catch_warnings(record=True) as said:  # torch warns instead of giving its reason
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    reason = f" It says: {str(said[0].message).splitlines()[0]}" if said else ""
    raise ConfigError(
        [
            f"there are {num_gpus} GPU(s), NVIDIA driver {gpu_driver_version() or 'n/a'}, but torch "
            f"{torch.__version__} ({built}) cannot use them, and the run would train on the CPU.{reason} Install "
            "a torch whose CUDA this driver supports (https://pytorch.org/get-started/locally), or a newer "
            "driver; or set DS_ACCELERATOR=cpu in the environment to train on the CPU on purpose."
        ],
        source="this machine",
    )


def refuse_missing_toolkit(ops: Sequence[str]) -> None:
    """Raise ConfigError when one of `ops`, DeepSpeed's, needs a compiler for GPUs that this machine does not have."""
    if "quantizer" not in ops:
        return
    from torch.utils.cpp_extension import CUDA_HOME  # loads setuptools

    if CUDA_HOME is not None and Path(CUDA_HOME, "bin/nvcc").is_file():
        return
    raise ConfigError(
        [
            "the policy asks for quantized messages (zero_quantized_weights, zero_quantized_gradients), whose kernels "
            "DeepSpeed compiles with nvcc of the CUDA toolkit. Through CUDA_HOME, PATH and /usr/local/cuda there is "
            f"{f'only {CUDA_HOME}, without bin/nvcc' if CUDA_HOME else 'none'}. Load or install the toolkit of CUDA "
            f"{torch.version.cuda or 'n/a'}, which this torch is built for, on every node; or take another policy, "
            "for instance ds_configs/zero3_hpz.json."
        ],
        source="this machine",
    )
