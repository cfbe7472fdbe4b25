"""How `megatune tune` shows what it would try, and what it has found."""

from collections.abc import Sequence
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from megatune.report.tables import render_table
from megatune.tune.layouts.candidates import Candidate
from megatune.tune.layouts.definition import Definition
from megatune.tune.layouts.halving import rungs
from megatune.tune.layouts.knobs import BY_KEY
from megatune.tune.layouts.result import TuneResult
from megatune.tune.layouts.standing import Shown
from megatune.units import format_bytes, format_duration, format_ratio

_SHOWN = 20
"""Candidates that people see; --json has all."""
_LONGEST = 140


def dry_run_views(definition: Definition, order: Sequence[int]) -> list[RenderableType]:
    """What would be tried, and why."""
    rules, space = definition.rules, definition.space
    knobs = [
        {"knob": key, "values": ", ".join(values), "what": BY_KEY[key].what}
        for key, values in space.varied.items()
    ]
    candidates = [space.candidates[number] for number in order]
    rows = [
        _planned_row(place, one, space.describe(one))
        for place, one in enumerate(candidates[:_SHOWN], start=1)
    ]
    sizes = rungs(rules.num_trials)
    lines = [
        f"{rules.num_trials} trials of {len(space.candidates)} candidates: {min(sizes[0], len(space.candidates))} are "
        f"looked at for {rules.steps} steps after {rules.warmup_steps} of warm-up, then the best "
        f"{', '.join(map(str, sizes[1:])) or 'is taken'} in turn for {2 * rules.steps}.",
        "the first is the run's own layout, whose losses the others must have. The next ones are chosen by what the "
        "planner expects, corrected by what was measured.",
        f"objective: {rules.objective}; measured by {rules.clock_words} ({rules.clock_why})",
        *[f"not tried: {reason}" for reason in space.left_out],
    ]
    return [
        render_table(knobs, title="what is varied"),
        render_table(
            rows, title=f"candidates as the planner ranks them: {len(candidates)}, of which {len(rows)} here"
        ),
        *map(Text, lines),
    ]


def result_views(result: TuneResult, best_file: str | None, picture: str | None) -> list[RenderableType]:
    """Every candidate that was tried, the best first; the Pareto front; the winner."""
    best = result.best
    shown = sorted(result.standing.shown.values(), key=_by_score)
    front = [_row(one, result) for one in result.standing.pareto()]
    lines = [
        f"best: {'n/a, no layout has trained' if best is None else _told(best, result)}",
        f"run file: {best_file or 'n/a'}",
        f"picture: {picture or 'n/a'}",
        _about_planner(result),
    ]
    if not result.is_done:
        lines.append(
            f"{result.num_open} trial(s) run; the tune is not done"
            if result.num_open
            else "the tune is not done"
        )
    return [
        render_table(
            [_row(one, result) for one in shown],
            title="tried, the best first; trials of the last rounds decide",
        ),
        render_table(front, title="memory against speed: no other layout beats these in both"),
        *map(Text, lines),
    ]


def _planned_row(place: int, one: Candidate, layout: str) -> dict[str, object]:
    return {
        "": place,
        "candidate": one.number,
        "layout": layout,
        "planned step": None if one.planned_s is None else f"{one.planned_s:.3g} s",
        "planned memory": format_bytes(one.planned_bytes),
    }


def _row(one: Shown, result: TuneResult) -> dict[str, object]:
    figures = one.figures
    ended = [trial.ended for trial in one.trials if trial.ended is not None]
    outcome = one.refused or ("running" if len(ended) < len(one.trials) else ended[-1].why or "ok")
    best = result.best
    return {
        "candidate": f"{one.candidate.number}{' *' if best is not None and one is best else ''}",
        "layout": result.definition.space.describe(one.candidate),
        "score": one.score,
        "tokens/s": None if figures is None else f"{figures.tokens_per_second:,.0f}",
        "memory": format_bytes(figures.peak_bytes if figures else None),
        "trials": len(one.trials),
        "time": format_duration(sum(end.seconds for end in ended)),
        "outcome": " ".join(outcome.split())[:_LONGEST],
    }


def _told(best: Shown, result: TuneResult) -> str:
    return f"candidate {best.candidate.number}: {result.definition.space.describe(best.candidate)}"


def _about_planner(result: TuneResult) -> str:
    errors = result.planner_errors
    if not errors:
        return "planner: n/a, it knows no times of this device"
    return (
        f"planner: fitted to these trials, its steps are {format_ratio(median(map(abs, errors)))} off (median), "
        f"{format_ratio(max(map(abs, errors)))} at most"
    )


def _by_score(one: Shown) -> tuple[bool, int, float, int]:
    return (one.score is None, -one.highest_rung, -(one.score or 0.0), one.candidate.number)
