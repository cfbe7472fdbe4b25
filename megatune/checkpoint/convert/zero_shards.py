"""DeepSpeed's own ZeRO-3 checkpoints (`global_stepN/zero_pp_rank_*`), as its engine and the Trainer write them.

Source of the layout: `_rigid_state_dict`, deepspeed/runtime/zero/stage3.py, and `_common_checkpoint_state`,
deepspeed/runtime/engine.py, of 0.19.8. Each data-parallel rank's file holds, for every sub-group of
parameters, one flat tensor: of each parameter in turn the elements [rank * n, rank * n + n) of its flattened,
padded whole, n = ceil(elements / ranks).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.convert.foreign import Facts, counter, loss_scale_of, optimizer_of
from megatune.checkpoint.convert.pickles import load_pickle
from megatune.engine.state import WEIGHT
from megatune.errors import ConvertError

_RANK_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(model|optim)_states\.pt")


@dataclass(frozen=True)
class _Place:
    """Where the pieces of a parameter lie in the flat tensors of its sub-group."""

    group: int
    start: int
    piece: int
    """Elements on each rank, padding included."""
    count: int
    """Elements of the whole."""


class ZeroShards:
    """Implements `ForeignState`. Tensors stay in the mapped files until they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ConvertError for what is not a whole ZeRO-3 checkpoint without tensor parallelism."""
        optimizers, models = _rank_files(folder)
        self._models = [load_pickle(path) for path in models]
        loaded = [_mapping(load_pickle(path), path, "optimizer_state_dict") for path in optimizers]
        self._ranks = [
            _mapping(state, folder, "fp32_flat_groups", "optimizer_state_dict") for state in loaded
        ]
        self._places = self._find_places(folder)
        self._frozen = frozen_shapes(self._models[0])
        first = self._ranks[0]
        kinds = self._check_states(folder)
        groups = first["optimizer_state_dict"].get("param_groups")
        self.facts = Facts(
            folder=folder,
            step=step_of_model_state(self._models[0], folder),
            shapes={name: tuple(shape) for group in self._shapes(folder) for name, shape in group.items()},
            frozen=self._frozen,
            kinds=(WEIGHT, *kinds),
            optimizer=optimizer_of(folder, frozenset(kinds), groups),
            counters=self._counters(folder, kinds, groups),
            loss_scale=loss_scale_of(first.get("loss_scaler")) if first.get("dynamic_loss_scale") else {},
            data_parallel=len(self._ranks),
        )

    def read(self, kind: str, name: str) -> torch.Tensor:
        place = self._places[name]
        pieces = [
            self._flat(rank, kind, place.group).narrow(0, place.start, place.piece)
            for rank in range(len(self._ranks))
        ]
        return torch.cat(pieces)[: place.count].float()

    def read_frozen(self, name: str) -> torch.Tensor:
        return join_fragments(self._models, name, self._frozen[name])

    def _flat(self, rank: int, kind: str, group: int) -> torch.Tensor:
        state = self._ranks[rank]
        if kind == WEIGHT:
            return state["fp32_flat_groups"][group]  # type: ignore[no-any-return]
        return state["optimizer_state_dict"]["state"][group][kind]  # type: ignore[no-any-return]

    def _shapes(self, folder: Path) -> list[Mapping[str, torch.Size]]:
        shapes = self._models[0].get("param_shapes") if isinstance(self._models[0], dict) else None
        if not isinstance(shapes, list) or not all(isinstance(group, dict) for group in shapes):
            raise ConvertError(f"{folder}: its model states do not list the shapes of the parameters.")
        return shapes

    def _find_places(self, folder: Path) -> dict[str, _Place]:
        """Raises ConvertError unless the parameters fill the flat tensors of every rank exactly."""
        _check_stage(self._ranks[0], folder, len(self._ranks))
        places: dict[str, _Place] = {}
        for group, shapes in enumerate(self._shapes(folder)):
            start = 0
            for name, shape in shapes.items():
                if name in places:
                    raise ConvertError(f"{folder}: {name} is listed twice.")
                count = math.prod(shape)
                piece = -(-count // len(self._ranks))
                places[name] = _Place(group, start, piece, count)
                start += piece
            for rank, state in enumerate(self._ranks):
                groups = state["fp32_flat_groups"]
                held = groups[group].numel() if group < len(groups) and groups[group] is not None else 0
                if held != start:
                    raise ConvertError(
                        f"{folder}: rank {rank} holds {held} fp32 weights of parameter group {group}, the shapes say "
                        f"{start}. Weights that were offloaded to a disk (NVMe) are not in the checkpoint's files."
                    )
        return places

    def _check_states(self, folder: Path) -> list[str]:
        """The kinds of optimizer state, which all ranks must have of all groups."""
        kinds: list[str] | None = None
        for rank, state in enumerate(self._ranks):
            for group, flat in enumerate(state["fp32_flat_groups"]):
                held = state["optimizer_state_dict"].get("state", {}).get(group, {})
                found = [
                    kind
                    for kind, value in held.items()
                    if torch.is_tensor(value) and value.shape == flat.shape and kind != "step"
                ]
                if kinds is not None and set(found) != set(kinds):
                    raise ConvertError(
                        f"{folder}: rank {rank} keeps {found or 'no optimizer state'} for parameter group {group}, and "
                        f"others {kinds}. The checkpoint is not whole, or was saved before the first step."
                    )
                kinds = found
        return kinds or []

    def _counters(self, folder: Path, kinds: list[str], groups: Any) -> dict[str, Any]:
        """What the optimizer counts, which must be the same everywhere."""
        found: dict[str, dict[str, Any]] = {}
        for rank, state in enumerate(self._ranks):
            for held in state["optimizer_state_dict"]["state"].values():
                for name in held.keys() - set(kinds):
                    value = counter(held[name])
                    if found.setdefault(name, value) != value:
                        raise ConvertError(
                            f"{folder}: {name} is {value['value']} on rank {rank} and {found[name]['value']} elsewhere."
                        )
        if "step" not in found and isinstance(groups, list) and groups and "step" in groups[0]:
            found["step"] = counter(groups[0]["step"])  # Apex' and DeepSpeed's fused Adam
        return found


def step_of_model_state(state: Any, folder: Path) -> int:
    """Steps done, from DeepSpeed's model states or else from the folder's name."""
    steps = state.get("global_steps") if isinstance(state, dict) else None
    named = re.match(r"global_step(\d+)", folder.name)
    if isinstance(steps, int):
        return steps
    if named:
        return int(named.group(1))
    raise ConvertError(f"{folder}: neither its model states nor its name (global_stepN) tell the step.")


def frozen_shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that were not trained."""
    shapes = (state.get("frozen_param_shapes") if isinstance(state, dict) else None) or {}
    return {name: tuple(shape) for name, shape in shapes.items()}


def join_fragments(models: list[Any], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A parameter that was not trained, from every rank's fragment of it."""
    fragments = [model["frozen_param_fragments"][name].flatten() for model in models]
    return torch.cat(fragments)[: math.prod(shape)].float()


def _rank_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The optimizer's and the model's files, by data-parallel rank."""
    found: dict[str, dict[int, Path]] = {"optim": {}, "model": {}}
    cut, foreign = [], []
    for path in sorted(folder.glob("*_states.pt")):
        match = _RANK_FILE.fullmatch(path.name)
        if match is None:
            foreign.append(path.name)
        elif int(match.group(2)) > 0:
            cut.append(path.name)
        else:
            found[match.group(3)][int(match.group(1))] = path
    if cut or foreign:
        raise ConvertError(
            f"{folder} holds {(cut or foreign)[0]}: it was saved with tensor parallelism, experts or another ZeRO "
            "stage than 3. Make it universal with DeepSpeed first (python -m deepspeed.checkpoint.ds_to_universal) and "
            "convert that."
        )
    num_ranks = max([*found["optim"], *found["model"], 0]) + 1
    missing = [
        f"zero_pp_rank_{rank}_mp_rank_00_{which}_states.pt"
        for which, paths in found.items()
        for rank in range(num_ranks)
        if rank not in paths
    ]
    if missing:
        raise ConvertError(f"{folder} is not whole: {', '.join(missing[:4])} is missing.")
    return tuple([paths[rank] for rank in range(num_ranks)] for paths in found.values())  # type: ignore[return-value]


def _check_stage(state: Mapping[str, Any], folder: Path, num_files: int) -> None:
    stage, count = state.get("zero_stage"), state.get("partition_count")
    if stage != 3 or state.get("ds_zero_partition_groups") is not None:
        raise ConvertError(
            f"{folder} was saved under ZeRO stage {stage}; 3 is read directly (without experts). Make it universal "
            "with DeepSpeed first (python -m deepspeed.checkpoint.ds_to_universal) and convert that."
        )
    if count != num_files:
        raise ConvertError(
            f"{folder} was saved by {count} data-parallel ranks, and {num_files} have files here."
        )


def _mapping(value: Any, where: Path, *keys: str) -> dict[str, Any]:
    """`value`, or what it holds under the only key given. Raises ConvertError when it is no such mapping."""
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise ConvertError(f"{where} does not hold {', '.join(keys)} of a ZeRO optimizer.")
    return value[keys[0]] if len(keys) == 1 else value
