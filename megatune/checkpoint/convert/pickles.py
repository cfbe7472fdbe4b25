"""Open DeepSpeed's files, which are pickles, without running anything that is in them.

torch's restricted unpickler makes nothing but tensors and plain values, and objects of the classes
below: stand-ins of our own, which take what the file says of the object as attributes and do nothing.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from megatune.errors import ConvertError


class Record:
    """Stands in for a class of DeepSpeed; its attributes are what the file holds."""


class Number(int):
    """Stands in for an enumeration of DeepSpeed whose values are integers."""


ALLOWED: dict[str, type] = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": Record,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": Record,
    "deepspeed.runtime.zero.config.ZeroStageEnum": Number,
    "deepspeed.checkpoint.universal_checkpoint.SubparamShape": Record,
}
"""Beside torch's own list: full name of a class in a file -> what is made instead."""


def load_pickle(path: Path) -> Any:
    """What torch.save wrote to `path`; tensors stay in the mapped file.

    Raises ConvertError that names every global of the file which is not allowed, and for what is no such file.
    """
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in ALLOWED.items()]
    with safe_globals(stand_ins):
        try:
            refused = sorted(get_unsafe_globals_in_checkpoint(str(path)))
        except FileNotFoundError as error:
            raise ConvertError(f"{path} is missing.") from error
        except (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ConvertError(f"{path} is not a whole file of torch.save: {_first_line(error)}.") from error
        if refused:
            raise ConvertError(
                f"{path} names {', '.join(refused)}, which a checkpoint does not need: loading it could run code. "
                "Nothing of it was loaded. If the object was put there by your own training script (client_state), "
                "save the checkpoint again without it."
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise ConvertError(f"{path} cannot be loaded: {_first_line(error)}.") from error
        except pickle.UnpicklingError as error:
            raise ConvertError(
                f"{path} does what a checkpoint does not need: {_first_line(error)}. Refused."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
