"""The training state of one rank as named flat tensors, and back.

DeepSpeed keeps the fp32 weights and the optimizer's moments of many parameters in one flat tensor. A
checkpoint must not know which (it depends on settings, on the stage and on the layout), so the state is
cut into one flat piece a parameter: a stretch of the flattened share of this tensor-parallel rank (see
`Division`). DeepSpeed pads pieces with memory that it never sets; a piece here ends where the share does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from megatune.engine.masters import Masters, Piece
from megatune.engine.world import World
from megatune.errors import CheckpointError

WEIGHT = "weight"
"""Kind of the fp32 weights; other kinds have the optimizer's own names (`exp_avg`, `momentum_buffer`)."""


@dataclass(frozen=True)
class RankState:
    """What one rank must keep to go on exactly."""

    tensors: dict[str, dict[str, torch.Tensor]]
    """Kind -> parameter name -> flat fp32 piece."""
    scalars: dict[str, Any]
    """JSON values: the loss scale, the optimizer's counters."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(piece.nbytes for held in self.tensors.values() for piece in held.values())


class SavedState(Protocol):
    """The state of this rank as a checkpoint holds it, read piece by piece."""

    @property
    def kinds(self) -> Sequence[str]:
        """As in `RankState.tensors`, `WEIGHT` among them."""

    @property
    def names(self) -> frozenset[str]:
        """The parameters that every kind has."""

    @property
    def scalars(self) -> Mapping[str, Any]:
        """As in `RankState.scalars`."""

    def num_elements(self, name: str) -> int:
        """Elements of this rank's piece of a parameter, without padding."""

    def read_into(self, kind: str, name: str, piece: torch.Tensor) -> None:
        """Fill `piece`, flat fp32 in host memory, of `num_elements(name)`. Raises CheckpointError."""


def export_state(masters: Masters, names: Iterable[str]) -> RankState:
    """The state of this rank; the tensors are views of the optimizer's, not copies."""
    tensors: dict[str, dict[str, torch.Tensor]] = {WEIGHT: {}}
    counters: dict[str, Any] = {}  # equal for all parameters
    for name in names:
        piece = masters.saved(name)
        tensors[WEIGHT][name] = _stretch(piece.owner.detach(), piece)
        for kind, value in masters.optimizer.state.get(piece.owner, {}).items():
            if torch.is_tensor(value) and value.shape == piece.owner.shape:
                tensors.setdefault(kind, {})[name] = _stretch(value, piece)
            else:
                counters[kind] = value
    # Once a kind: a fused optimizer keeps them on the GPU, and each look waits for it.
    read = {kind: {"value": float(value)} for kind, value in counters.items()}
    return RankState(tensors, {"optimizer": read, "loss_scale": _loss_scale_state(masters.loss_scaler)})


def import_state(masters: Masters, names: Iterable[str], state: SavedState) -> None:
    """Put `state` into the optimizer of this rank alone; `Masters.refresh` must follow on all ranks.

    Beyond the optimizer's own memory it needs at most one piece. Raises CheckpointError when the pieces
    are not those of this model on this layout, or cannot be read.
    """
    names = list(names)
    _check_pieces(masters, names, state)
    for name in names:
        piece = masters.held(name)
        slots = masters.optimizer.state[piece.owner]
        for kind in state.kinds:
            owner = piece.owner.data
            if kind != WEIGHT and kind not in slots:  # once: the owner holds many parameters
                slots[kind] = torch.zeros_like(owner)
            target = owner if kind == WEIGHT else slots[kind]
            slot = target.view(-1).narrow(0, piece.start, piece.padded)
            slot[piece.count :] = 0
            _fill(slot[: piece.count], state, kind, name)
        for kind, counter in state.scalars["optimizer"].items():
            slots[kind] = _counter(masters.optimizer, counter["value"], piece.owner.device)
    _catch_up(masters.optimizer, state.scalars["optimizer"])
    _restore_loss_scale(masters.loss_scaler, state.scalars["loss_scale"])


def load_on_all_ranks(masters: Masters, names: Iterable[str], state: SavedState, world: World) -> None:
    """Go on from `state`. Collective: every rank calls it.

    Raises CheckpointError with every rank's reason, on all ranks, when one cannot read its pieces.
    """
    problem = None
    try:
        import_state(masters, names, state)
    except CheckpointError as error:
        problem = str(error)
    problems = sorted(set(filter(None, world.gather_objects(problem))))
    if problems:
        raise CheckpointError(" ".join(problems))
    masters.refresh()


def _stretch(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    return tensor.view(-1).narrow(0, piece.start, piece.count)


def _fill(slot: torch.Tensor, state: SavedState, kind: str, name: str) -> None:
    if slot.device.type == "cpu" and slot.dtype == torch.float32:
        state.read_into(kind, name, slot)
        return
    piece = torch.empty(slot.numel(), dtype=torch.float32)
    state.read_into(kind, name, piece)
    slot.copy_(piece)


def _counter(optimizer: Any, value: float, device: torch.device) -> torch.Tensor | int:
    """A count of steps as this optimizer keeps it, whichever saved it: DeepSpeed's compiled Adam, which offload uses,
    a number, torch's a tensor beside the weights."""
    if _is_compiled(optimizer):
        return int(value)
    return torch.tensor(value, dtype=torch.float32, device=device)


def _is_compiled(optimizer: Any) -> bool:
    return hasattr(optimizer, "ds_opt_adam")


def _check_pieces(masters: Masters, names: Sequence[str], state: SavedState) -> None:
    if state.names != set(names):
        odd = sorted(state.names ^ set(names))
        raise CheckpointError(f"{len(odd)} parameters differ from this model's, e.g. {', '.join(odd[:3])}.")
    for name in names:
        count = masters.held(name).count
        if state.num_elements(name) != count:
            raise CheckpointError(
                f"{name} has {state.num_elements(name)} elements on this rank, the layout needs {count}."
            )


def _catch_up(optimizer: Any, counters: Mapping[str, Any]) -> None:
    """Bring DeepSpeed's compiled Adam, which offload uses, to the saved step.

    It keeps the bias correction as a running product, beta by beta; for a step that does not follow
    its last one it takes a power instead, which differs in the last bits. Some microseconds a step.
    """
    if not _is_compiled(optimizer) or "step" not in counters:
        return
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    weight, gradient, first, second = torch.zeros(4, 1).unbind()
    for step in range(1, int(counters["step"]["value"]) + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, weight, gradient, first, second
        )


def _loss_scale_state(scaler: Any) -> dict[str, float]:
    """Counters of DeepSpeed's dynamic loss scaler; {} without fp16."""
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}


def _restore_loss_scale(scaler: Any, saved: Mapping[str, float]) -> None:
    """Nothing where the kind of scaler has changed: the scale of fp16 would multiply the loss of bf16."""
    if saved.keys() != _loss_scale_state(scaler).keys():
        return
    for name, value in saved.items():
        setattr(scaler, name, value)
