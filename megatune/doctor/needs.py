"""What a run will need of disk and host memory, as far as its files tell. Lower bounds, never guesses."""

import json
import math
import struct
from pathlib import Path

from megatune.config import Run
from megatune.plan.states import ELEMENT_BYTES, optimizer_bytes

_MOST_HEADER_BYTES = 2**27


def count_stored_params(folder: Path) -> int | None:
    """Elements of all tensors in the safetensors files of `folder`, from their headers; None without any.

    The header is described at github.com/huggingface/safetensors#format.
    """
    files = sorted(folder.glob("*.safetensors"))
    counts = [_elements(file) for file in files]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(files) else None


def checkpoint_bytes(run: Run, num_params: int | None) -> int | None:
    """Bytes of one checkpoint: the fp32 weights and the optimizer's moments (`checkpoint/write.py`).

    AdamW has two moments, so 12 bytes a parameter.
    """
    if num_params is None:
        return None
    return num_params * optimizer_bytes(run.train.optimizer, momentum=run.train.momentum)


def host_bytes(run: Run, num_params: int | None, *, on_gpu: bool) -> int | None:
    """Least bytes of host memory over all nodes together; None when the model's size is not known.

    On CPUs the fp32 weights, the moments, and weights and gradients in the run's precision; with
    GPUs what is offloaded of that; what is on a local disk is not counted. What the libraries themselves take comes
    on top.
    """
    states = checkpoint_bytes(run, num_params)
    if num_params is None or states is None:
        return None
    working = num_params * 2 * ELEMENT_BYTES[run.precision]
    if run.parallel.disk_folder is not None:
        states = 0
    if not on_gpu or run.parallel.offload == "all":
        return states + working
    return 0 if run.parallel.offload == "none" else states


def _elements(file: Path) -> int | None:
    with file.open("rb") as content:
        prefix = content.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = content.read(header_bytes) if 0 < header_bytes < _MOST_HEADER_BYTES else b""
    try:
        tensors = json.loads(header)
    except ValueError:
        return None  # damaged: `train` says so; here the size is unknown
    shapes = [entry["shape"] for name, entry in tensors.items() if name != "__metadata__"]
    return sum(math.prod(map(int, shape)) for shape in shapes)
