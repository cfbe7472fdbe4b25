"""The course of a run: its losses and every score of its held-out splits, as numbers and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatune.errors import ConfigError
from megatune.report.figures import save_figure

Curve = list[tuple[int, float]]
_COLUMNS = 3
_FORMATS = (".png", ".svg", ".pdf")


def curves(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Score -> split -> (step, value), from the lines of a metrics file; the training loss is `train`."""
    found: dict[str, dict[str, Curve]] = {}

    def add(score: str, split: str, step: int, value: float | None) -> None:
        if value is not None:
            found.setdefault(score, {}).setdefault(split, []).append((step, value))

    for entry in entries:
        if entry["event"] == "step":
            add("loss", "train", entry["step"], entry["loss"])
        elif entry["event"] == "eval":
            scores = {
                "loss": entry["loss"],
                "perplexity": entry["perplexity"],
                **(entry.get("metrics") or {}),
            }
            for score, value in scores.items():
                add(score, entry["split"], entry["step"], value)
    return found


def draw_curves(entries: Sequence[Mapping[str, Any]], path: Path) -> int:
    """Draw one plot a score into `path`; the number of plots, 0 when there is nothing to draw.

    Raises ConfigError for an ending that is no picture.
    """
    if path.suffix not in _FORMATS:
        raise ConfigError(
            [f"--picture is {path}; its ending must be one of {', '.join(_FORMATS)}"],
            source="megatune report",
        )
    found = curves(entries)
    if not found:
        return 0
    from matplotlib.figure import Figure  # seconds to import

    rows = -(-len(found) // _COLUMNS)
    columns = min(_COLUMNS, len(found))
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for plot, (score, by_split) in zip(plots, found.items(), strict=False):
        _draw(plot, score, by_split)
    for plot in plots[len(found) :]:
        plot.set_axis_off()
    save_figure(figure, path)
    return len(found)


def _draw(plot: Any, score: str, by_split: Mapping[str, Curve]) -> None:
    for split, points in by_split.items():
        steps, values = zip(*points, strict=True)
        plot.plot(steps, values, "-" if split == "train" else "o-", label=split)
    plot.set_xlabel("step")
    plot.set_ylabel(score)
    plot.legend()
