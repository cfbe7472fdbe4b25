"""DeepSpeed's universal checkpoints: `zero/PARAMETER/{fp32,exp_avg,exp_avg_sq}.pt`, whole tensors.

Source of the layout: `main`, deepspeed/checkpoint/ds_to_universal.py of 0.19.8.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.convert.foreign import KINDS, Facts, counter, loss_scale_of, optimizer_of
from megatune.checkpoint.convert.pickles import load_pickle
from megatune.checkpoint.convert.zero_shards import frozen_shapes, join_fragments, step_of_model_state
from megatune.engine.state import WEIGHT
from megatune.errors import ConvertError

ZERO = "zero"
OPTIMIZER_STATE = "optimizer_state.pt"
PARAM = "param"


class Universal:
    """Implements `ForeignState`. A file is opened when its tensor is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ConvertError for what is not a whole universal checkpoint."""
        self._zero = folder / ZERO
        names = sorted(path.name for path in self._zero.iterdir() if path.is_dir())
        if not names:
            raise ConvertError(f"{self._zero} holds no parameter.")
        _check_kinds(self._zero, names)
        self._models = [load_pickle(path) for path in _by_rank(folder.glob("*model_states.pt"))]
        first = self._models[0] if self._models else None
        self._frozen = frozen_shapes(first)
        common = load_pickle(self._zero / OPTIMIZER_STATE)
        if not isinstance(common, dict):
            raise ConvertError(f"{self._zero / OPTIMIZER_STATE} holds a {type(common).__name__}.")
        kinds = frozenset(KINDS.values()) - {WEIGHT}
        self.facts = Facts(
            folder=folder,
            step=step_of_model_state(first, folder),
            shapes={name: tuple(_tensor(self._zero / name / "fp32.pt").shape) for name in names},
            frozen=self._frozen,
            kinds=tuple(KINDS.values()),
            optimizer=optimizer_of(folder, kinds, common.get("param_groups")),
            counters={"step": self._step(common, names[0])},
            loss_scale=loss_scale_of(common.get("loss_scaler")) if common.get("dynamic_loss_scale") else {},
            data_parallel=1,
        )

    def read(self, kind: str, name: str) -> torch.Tensor:
        (file,) = [file for file, held in KINDS.items() if held == kind]
        found = _tensor(self._zero / name / f"{file}.pt")
        if found.numel() != math.prod(self.facts.shapes[name]):
            raise ConvertError(f"{self._zero / name / file}.pt has {found.numel()} elements, fp32.pt others.")
        return found.flatten().float()

    def read_frozen(self, name: str) -> torch.Tensor:
        return join_fragments(self._models, name, self._frozen[name])

    def _step(self, common: dict[str, Any], name: str) -> dict[str, Any]:
        """Adam's count: of ZeRO-3 beside the common state, of stages 1 and 2 beside each parameter."""
        state = (common.get("optimizer_state_dict") or {}).get("state") or {}
        if "step" in state.get(0, {}):
            return counter(state[0]["step"])
        own = self._zero / name / "step.pt"
        if not own.exists():
            raise ConvertError(
                f"{self._zero}: neither {OPTIMIZER_STATE} nor {own} holds the optimizer's step."
            )
        return counter(load_pickle(own))


def _check_kinds(zero: Path, names: list[str]) -> None:
    problems = [
        f"{name} has no {file}.pt"
        for name in names
        for file in KINDS
        if not (zero / name / f"{file}.pt").is_file()
    ]
    if problems:
        raise ConvertError(
            f"{zero}: {len(problems)} files are missing: {'; '.join(problems[:4])}. Only Adam(W) states can "
            "be converted."
        )


def _by_rank(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _tensor(path: Path) -> torch.Tensor:
    held = load_pickle(path)
    found = held.get(PARAM) if isinstance(held, dict) else held
    if not torch.is_tensor(found):
        raise ConvertError(f"{path} holds a {type(found).__name__}, not a tensor.")
    return found
