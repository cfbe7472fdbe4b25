"""`weights.json`: what each parameter is as a whole, to join its shares without the model's code."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatune.plan.shards import Cut

if TYPE_CHECKING:  # an export needs no transformers, which takes seconds to import
    from megatune.model.build import BuiltModel


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One parameter under its Hugging Face name."""

    shape: tuple[int, ...]
    """Shape of the whole weight as the model computes with it (before `transposed`)."""
    cut: Cut | None
    transposed: bool
    """Export transposes it: GPT-2's Conv1D stores (inputs, outputs)."""

    def to_json(self) -> dict[str, Any]:
        cut = None if self.cut is None else self.cut.to_json()
        return {"shape": list(self.shape), "cut": cut, "transposed": self.transposed}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "WeightEntry":
        cut = None if stored["cut"] is None else Cut.from_json(stored["cut"])
        return cls(shape=tuple(stored["shape"]), cut=cut, transposed=stored["transposed"])


def describe_weights(built: "BuiltModel") -> dict[str, Any]:
    """The JSON object for `weights.json`."""
    entries = {}
    for name, parameter in built.model.named_parameters():
        cut = built.cuts.get(name)
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if cut is not None:
            shape[cut.dim] = cut.size
        entries[name] = WeightEntry(
            shape=tuple(shape), cut=cut, transposed=name in built.transposed
        ).to_json()
    return entries
