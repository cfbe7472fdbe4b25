"""search.png: the losses of all trials, along each axis, and which key mattered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatune.report.figures import save_figure
from megatune.tune.search.result import SearchResult, TrialResult
from megatune.tune.search.space import Choices, Range


def draw_search(result: SearchResult, path: Path) -> bool:
    """Draw the picture. False, and nothing drawn, where no trial is done."""
    done = [trial for trial in result.trials if trial.loss is not None]
    if not done:
        return False
    from matplotlib.figure import Figure  # half a second to import

    axes = result.definition.space.axes
    columns = 1 + len(axes) + (result.importance is not None)
    figure = Figure(figsize=(4 * columns, 3.6), layout="constrained")
    plots = list(figure.subplots(1, columns, squeeze=False)[0])
    _draw_course(plots[0], done)
    for plot, axis in zip(plots[1:], axes, strict=False):
        _draw_axis(plot, axis, done)
    if result.importance is not None:
        _draw_importance(plots[-1], result.importance)
    save_figure(figure, path)
    return True


def _draw_course(plot: Any, done: list[TrialResult]) -> None:
    numbers, losses = (
        [trial.number for trial in done],
        [trial.loss for trial in done if trial.loss is not None],
    )
    lowest = [min(losses[: index + 1]) for index in range(len(losses))]
    plot.plot(numbers, losses, "o", label="trial")
    plot.step(numbers, lowest, where="post", label="lowest so far")
    plot.set_xlabel("trial")
    plot.set_ylabel("validation loss (nats a token)")
    plot.legend()


def _draw_axis(plot: Any, axis: Choices | Range, done: list[TrialResult]) -> None:
    losses = [trial.loss for trial in done]
    if isinstance(axis, Choices):
        places = [float(axis.values.index(trial.point[axis.key])) for trial in done]
        plot.set_xticks(range(len(axis.values)), axis.values)
    else:
        places = [float(trial.point[axis.key]) for trial in done]
        plot.set_xscale("log" if axis.log else "linear")
    plot.plot(places, losses, "o")
    plot.set_xlabel(axis.key)


def _draw_importance(plot: Any, importance: Mapping[str, float]) -> None:
    plot.barh(list(importance)[::-1], list(importance.values())[::-1])
    plot.set_xlabel("importance (PED-ANOVA)")
