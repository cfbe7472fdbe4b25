"""`weights.json`: what each parameter is as a whole, to join its shares without the model's code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatune.checkpoint.layout import Layout
from megatune.checkpoint.reshard import Placement
from megatune.plan.shards import Cut, Division

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
    divisions: tuple[Division, ...] | None = None
    """How data-parallel ranks divide each tensor-parallel rank's share; None: evenly, by itself."""

    def placement(self, layout: Layout) -> Placement:
        """Where its elements lie under `layout`, whose `divisions` these are."""
        return Placement(self.shape, self.cut, layout, self.divisions)

    def to_json(self) -> dict[str, Any]:
        cut = None if self.cut is None else self.cut.to_json()
        divisions = self.divisions and [[division.offset, division.size] for division in self.divisions]
        return {
            "shape": list(self.shape),
            "cut": cut,
            "transposed": self.transposed,
            "divisions": divisions,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "WeightEntry":
        cut = None if stored["cut"] is None else Cut.from_json(stored["cut"])
        divisions = stored["divisions"]
        return cls(
            shape=tuple(stored["shape"]),
            cut=cut,
            transposed=stored["transposed"],
            divisions=divisions and tuple(Division(offset, size) for offset, size in divisions),
        )


def describe_weights(
    built: "BuiltModel", divisions: Mapping[str, tuple[Division, ...]] | None = None
) -> dict[str, Any]:
    """The JSON object for `weights.json`; `divisions` as an engine tells them."""
    entries = {}
    for name, parameter in built.model.named_parameters():
        cut = built.cuts.get(name)
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if cut is not None:
            shape[cut.dim] = cut.size
        entries[name] = WeightEntry(
            shape=tuple(shape),
            cut=cut,
            transposed=name in built.transposed,
            divisions=None if divisions is None else divisions[name],
        ).to_json()
    return entries
