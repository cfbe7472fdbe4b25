"""best.yaml: the run file of a search's best trial, with comments that say where its values come from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatune.config import load_run, resolved_yaml
from megatune.tune.search.result import SearchResult, TrialResult
from megatune.tune.search.space import Axis, Choices, overrides_of
from megatune.units import format_duration


def best_yaml(run_file: Path, result: SearchResult, best: TrialResult) -> str:
    """The text of best.yaml: the search's run file with the values of `best`; its output_dir is the run's own."""
    loaded = load_run(run_file, overrides_of(best.point))
    why = {axis.key: f"search: best of {_tried(axis)}" for axis in result.definition.space.axes}
    origins = {key: why.get(key) or _kept(origin) for key, origin in loaded.origins.items()}
    told = replace(loaded, origins=origins)
    head = "".join(f"# {line}\n" for line in _head(result, best))
    return head + resolved_yaml(told)


def _head(result: SearchResult, best: TrialResult) -> Sequence[str]:
    ended = len(result.trials) - result.num_open
    others = sorted(trial.loss for trial in result.trials if trial.loss is not None)
    lines = [
        f"Trial {best.number} of a search over {len(result.definition.space.axes)} key(s): validation loss "
        f"{best.loss:.5f} after {format_duration(best.seconds)}, the lowest of {ended} trials "
        f"({result.definition.sampler}, pruner {result.definition.pruner}, seed {result.definition.seed}).",
    ]
    if len(others) > 1:
        lines.append(f"The next best trial has {others[1]:.5f}, the worst that ended has {others[-1]:.5f}.")
    if result.importance:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in result.importance.items())
        lines.append(f"Importance (PED-ANOVA): {shares}.")
    return [*lines, "Train it: megatune train best.yaml"]


def _tried(axis: Axis) -> str:
    if isinstance(axis, Choices):
        return ", ".join(axis.values)
    scale = ", log" if axis.log else "" if axis.step is None else f", step {axis.step:g}"
    return f"{axis.low:g} to {axis.high:g}{scale}"


def _kept(origin: str) -> str:
    return "the searched run file" if origin != "default" else origin
