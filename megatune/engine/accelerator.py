"""The device of a rank, and whether torch can use the GPUs that the machine has."""

import warnings

import torch
from deepspeed.accelerator import get_accelerator

from megatune.errors import ConfigError
from megatune.launch.devices import gpu_driver_version


def own_device(local_rank: int = 0) -> torch.device:
    """The device that DeepSpeed trains on in this process: its own GPU, or the CPU."""
    return torch.device(get_accelerator().device_name(local_rank))


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
