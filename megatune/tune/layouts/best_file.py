"""best.yaml: the run file of a tune's winner, with comments that say why its values were chosen."""

from collections.abc import Iterator

from megatune.config import load_run, resolved_yaml
from megatune.config.load import LoadedRun
from megatune.files import write_text_atomic
from megatune.tune.layouts.candidates import is_set_in_policy, overrides_of, write_policy
from megatune.tune.layouts.knobs import BY_KEY, POLICY
from megatune.tune.layouts.result import TuneResult
from megatune.tune.layouts.standing import Shown
from megatune.units import format_bytes


def write_best(result: TuneResult, best: Shown) -> None:
    """Write the winner's run file, and its DeepSpeed policy where it has values of its own."""
    folder, values = result.folder, best.candidate.values
    policy = write_policy(result.definition.tuned(folder), values, folder.best_policy)
    loaded = load_run(folder.run_file, [*overrides_of(values), *policy])
    why = {key: _why(result, best, key) for key in values if not key.startswith(POLICY)}
    policy_why = [_why(result, best, key) for key, text in values.items() if is_set_in_policy(key, text)]
    if policy_why:
        why["deepspeed"] = "; ".join(policy_why)
    told = LoadedRun(
        run=loaded.run,
        origins={key: why.get(key) or _kept(origin) for key, origin in loaded.origins.items()},
        notices=loaded.notices,
    )
    head = "".join(f"# {line}\n" for line in _head(result, best))
    write_text_atomic(folder.best_file, head + resolved_yaml(told))


def _head(result: TuneResult, best: Shown) -> Iterator[str]:
    rules, figures = result.definition.rules, best.figures
    assert figures is not None and best.score is not None, "it was measured, or it could not have won"
    made = sum(trial.ended is not None and trial.counts for trial in result.trials)
    yield (
        f"The best of {len(result.standing.shown)} layouts tried in {made} trials, of "
        f"{len(result.definition.space.candidates)} candidates, by {rules.objective}: {best.score:.2f} x the run's own."
    )
    yield (
        f"{figures.tokens_per_second:,.0f} tokens/s by {rules.clock_words}, {format_bytes(figures.peak_bytes)} on the "
        "fullest device; the losses of its steps are the reference's."
    )
    yield "Train it: megatune train best.yaml"


def _why(result: TuneResult, best: Shown, key: str) -> str:
    """Why this value: the best measured result with each other value of the knob."""
    mine = best.candidate.values[key]
    name = f"{key.removeprefix(POLICY)}={mine}: " if key.startswith(POLICY) else ""
    tried: dict[str, float] = {}
    for one in result.standing.shown.values():
        if one.is_whole and one.score is not None:
            other = one.candidate.values[key]
            tried[other] = max(tried.get(other, 0.0), one.score)
    others = [f"{value} at best {score:.2f} x" for value, score in tried.items() if value != mine]
    if others:
        return f"{name}tuned: {best.score:.2f} x the run's own; {', '.join(others)}"
    varied = result.definition.space.varied.get(key)
    if varied is None:
        return f"{name}kept: {BY_KEY[key].what}"
    untried = ", ".join(value for value in varied if value != mine)
    return f"{name}tuned: {untried} did not look better, or did not train"


def _kept(origin: str) -> str:
    return "the tuned run file" if origin != "default" else origin
