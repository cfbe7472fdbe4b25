"""Write a checkpoint of megatune as a universal checkpoint of DeepSpeed. Memory: twice its largest tensor.

A ZeRO-3 engine with `{"checkpoint": {"load_universal": true}}` loads the folder with `load_checkpoint`, on any
number of ranks. (Stages 1 and 2 would load as many of their parameter groups as the file lists and pass over the
rest without a word; what they look for is not written.) What ZeRO-3 asks for: `_load_checkpoint`,
deepspeed/runtime/engine.py, and `_load_universal_checkpoint`, deepspeed/runtime/zero/stage3.py, of 0.19.8.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.convert.foreign import KINDS
from megatune.checkpoint.convert.universal import OPTIMIZER_STATE, PARAM, ZERO
from megatune.checkpoint.layout import MODEL_FOLDER
from megatune.checkpoint.whole import WholeTensors
from megatune.errors import CheckpointError, ConvertError

_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_MODEL_STATES = "zero_pp_rank_0_mp_rank_00_model_states.pt"


def write_universal(checkpoint: Path, target: Path) -> Path:
    """Write `target/global_stepN_universal` and a `latest_universal` that names it; returns the folder.

    Raises CheckpointError for a checkpoint that is damaged or a disk that refuses, and ConvertError for an
    optimizer DeepSpeed does not load and a target that is there; then nothing is left behind.
    """
    if target.exists():
        raise ConvertError(f"{target} is already there; give another TARGET or remove it first.")
    whole = WholeTensors(checkpoint)
    _check(whole, checkpoint)
    tag = f"global_step{whole.manifest.step}_universal"
    unfinished = target.with_name(target.name + ".tmp")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)  # ours: an earlier conversion was cut off
        shutil.copytree(checkpoint / MODEL_FOLDER, unfinished)
        _write(whole, unfinished / tag)
        (unfinished / "latest_universal").write_text(tag, encoding="utf-8")
        os.sync()
        unfinished.rename(target)
    except (OSError, RuntimeError) as error:  # torch.save has RuntimeError for a full disk
        raise CheckpointError(f"{target} could not be written: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone when it has become the target
    return target / tag


def _check(whole: WholeTensors, checkpoint: Path) -> None:
    if set(whole.kinds) != set(KINDS.values()) or "step" not in whole.scalars["optimizer"]:
        raise ConvertError(
            f"{checkpoint} holds {', '.join(whole.kinds)}. DeepSpeed's universal checkpoints hold Adam's moments "
            "and no other optimizer's; the weights alone leave with `megatune export`."
        )
    odd = [name for name in whole.shapes if not _NAME.fullmatch(name)]
    if odd:
        raise ConvertError(f"{checkpoint} names a parameter {odd[0]!r}, which cannot be a folder: refused.")


def _write(whole: WholeTensors, folder: Path) -> None:
    counted = whole.scalars["optimizer"]["step"]["value"]
    for name in whole.shapes:
        own = folder / ZERO / name
        own.mkdir(parents=True)
        for file, kind in KINDS.items():
            torch.save({PARAM: whole.read(kind, name), "cat_dim": 0}, own / f"{file}.pt")
    torch.save(_optimizer_state(counted), folder / ZERO / OPTIMIZER_STATE)
    torch.save(_model_state(whole), folder / _MODEL_STATES)


def _optimizer_state(counted: float) -> dict[str, Any]:
    """What all parameters share. Learning rate and such stay those of the engine that loads it."""
    groups: list[dict[str, Any]] = [{"params": []}]
    return {
        "zero_stage": 3,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(counted)}}, "param_groups": groups},
        "param_groups": groups,
    }


def _model_state(whole: WholeTensors) -> dict[str, Any]:
    step = whole.manifest.step
    return {
        "module": {},
        "buffer_names": [],
        "param_shapes": [{name: torch.Size(shape) for name, shape in whole.shapes.items()}],
        "frozen_param_shapes": {},
        "frozen_param_fragments": {},
        "shared_params": {},
        "lr_scheduler": None,
        "global_steps": step,
        "skipped_steps": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},
        "ds_config": {},
        "ds_version": "n/a",
    }
