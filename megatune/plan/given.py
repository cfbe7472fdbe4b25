"""What a run file leaves to the planner, what it fixes, and what the best layout would be if it fixed nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatune.config import LoadedRun
from megatune.plan.answer import time_values
from megatune.plan.assess import Assessment
from megatune.plan.auto import open_keys
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import LAYOUT_KEYS, shown, value_of, values_of
from megatune.plan.search import Found

_CLEARLY_FASTER = 0.95
"""Of the time: the rows of docs/plan.md are met within a few per cent, and less of a difference says nothing."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """The keys of a layout, as the run file has them."""

    loaded: LoadedRun
    open: tuple[str, ...]
    """What a start chooses."""
    fixed: Mapping[str, str]
    """Key -> where its value comes from: "run.yaml:12", "command line" or "default"."""
    chosen: Assessment | None
    """What a start would take; None where what is fixed cannot be trained."""
    free: Assessment | None
    """The best layout with every key free, where it is clearly better than `chosen`."""

    def lines(self) -> list[str]:
        """For people: one line on the keys, one on what they cost."""
        run, told = self.loaded.run, []
        if self.fixed:
            values = [
                f"{key}={shown(value_of(run, key))} ({origin})"
                for key, origin in sorted(self.fixed.items(), key=lambda item: item[1] == "default")
            ]
            told.append(f"fixed: {', '.join(values)}; auto leaves a key to the planner")
        if self.free is not None:
            changes = " ".join(self._changes(self.free.layout))
            told.append(f"with every key free: {self.free.layout}{self._gain(self.free)}; it takes {changes}")
        return told

    def _gain(self, free: Assessment) -> str:
        if self.chosen is None or not self.chosen.ledger.fits:
            return " fits"
        speed = free.beside(self.chosen)
        if speed is None:
            return f", {free.step_s:.3g} s a step, where the time of what is fixed is not known"
        return f", {speed}"

    def _changes(self, layout: Layout) -> list[str]:
        """What the run file must say otherwise; what it leaves open a start will choose by itself."""
        run, values = self.loaded.run, values_of(layout)
        differing = [key for key in self.fixed if values[key] != value_of(run, key)]
        found = [f"{key}={shown(values[key])}" for key in differing]
        has_batch = run.train.global_batch_size is not None or run.train.tokens_per_step is not None
        if not has_batch and layout.accumulation != (run.train.gradient_accumulation_steps or 1):
            found.append(f"train.gradient_accumulation_steps={layout.accumulation}")
        return found

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        run, free = self.loaded.run, self.free
        return {
            "open": list(self.open),
            "fixed": {
                key: {"value": value_of(run, key), "from": origin} for key, origin in self.fixed.items()
            },
            "free": None if free is None else {"layout": free.layout.to_json(), "time": time_values(free)},
        }


def given_by(loaded: LoadedRun, chosen: Assessment | None, found: Found) -> Given:
    """`chosen`: of what the run file leaves open; `found`: of all that there is."""
    keys = open_keys(loaded.run, loaded.auto)
    fixed = {key: loaded.origins[key] for key in LAYOUT_KEYS if key not in keys}
    best = found.best
    is_better = best is not None and (chosen is None or _is_clearly_better(best, chosen))
    return Given(
        loaded=loaded, open=keys, fixed=fixed, chosen=chosen, free=best if fixed and is_better else None
    )


def _is_clearly_better(best: Assessment, chosen: Assessment) -> bool:
    if not chosen.ledger.fits:
        return True
    mine, theirs = best.sequence_s, chosen.sequence_s
    return mine is not None and (theirs is None or mine < _CLEARLY_FASTER * theirs)
