"""tune.png: speed against memory of all that was tried, and the planner's expectation beside what was measured."""

from pathlib import Path
from typing import Any

from megatune.report.figures import save_figure
from megatune.tune.layouts.result import TuneResult
from megatune.tune.layouts.standing import Shown

_GIB = 2**30


def draw_tune(result: TuneResult, path: Path) -> bool:
    """Draw the picture. False, and nothing drawn, where nothing was measured."""
    shown = [one for one in result.standing.shown.values() if one.figures is not None]
    if not shown:
        return False
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_pareto(left, result, shown)
    _draw_planner(right, shown)
    save_figure(figure, path)
    return True


def _draw_pareto(plot: Any, result: TuneResult, shown: list[Shown]) -> None:
    for label, marker, some in (
        ("tried", "o", [one for one in shown if one.refused is None]),
        ("may not win", "x", [one for one in shown if one.refused is not None]),
    ):
        points = [_point(one) for one in some]
        if points:
            plot.plot(*zip(*points, strict=True), marker, label=label)
    front = [_point(one) for one in result.standing.pareto()]
    if front:
        plot.plot(*zip(*front, strict=True), "-", label="no other is better in both")
    if result.best is not None:
        plot.plot(*_point(result.best), "*", markersize=14, label=f"best: {result.best.candidate.layout}")
    for one in shown:
        plot.annotate(
            str(one.candidate.number), _point(one), textcoords="offset points", xytext=(4, 4), fontsize=7
        )
    plot.set_xlabel("memory of the fullest device (GiB)")
    plot.set_ylabel(f"tokens/s ({result.definition.rules.clock_words})")
    plot.legend(fontsize=7)


def _draw_planner(plot: Any, shown: list[Shown]) -> None:
    known = [one for one in shown if one.candidate.planned_s is not None and one.figures is not None]
    if not known:
        plot.set_axis_off()
        plot.text(0.5, 0.5, "the planner knows no times of this device", ha="center")
        return
    first = known[0]
    assert first.figures is not None and first.candidate.planned_s is not None
    planned = [(one.candidate.planned_s or 0.0) / first.candidate.planned_s for one in known]
    measured = [one.figures.token_s / first.figures.token_s for one in known if one.figures is not None]
    plot.plot(planned, measured, "o")
    for one, x, y in zip(known, planned, measured, strict=True):
        plot.annotate(
            str(one.candidate.number), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7
        )
    ends = [min(*planned, *measured), max(*planned, *measured)] if len(known) > 1 else [0.9, 1.1]
    plot.plot(ends, ends, "--", linewidth=0.8)
    plot.set_xlabel(f"step time as planned, layout {first.candidate.number} = 1")
    plot.set_ylabel("step time as measured")


def _point(one: Shown) -> tuple[float, float]:
    assert one.figures is not None
    return (one.figures.peak_bytes or 0) / _GIB, one.figures.tokens_per_second
