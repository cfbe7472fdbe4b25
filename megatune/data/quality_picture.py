"""The report on prepared data as a picture: lengths, and answers where there are few."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatune.data.prepared import PreparedSet
from megatune.data.quality import NUM_BINS
from megatune.report.figures import save_figure
from megatune.units import format_ratio

_DPI = 100
_MOST_ANSWERS = 15
_SETS = "Prepared sets"
"""Name of the text in a picture that says what it shows."""


def draw_or_tell(sets: Mapping[str, PreparedSet], target: Path) -> None:
    """`draw_quality`; a picture that cannot be written is told on stderr, for it is no reason not to train."""
    try:
        draw_quality(sets, target)
    except OSError as error:
        print(f"megatune: the picture of the data is not drawn: {error}", file=sys.stderr, flush=True)


def draw_quality(sets: Mapping[str, PreparedSet], target: Path) -> None:
    """Write a PNG of `sets`, by their names, to `target`, unless it is there. Whole or not at all."""
    fingerprints = " ".join(prepared.fingerprint for prepared in sets.values())
    if _shows(target, fingerprints):
        return
    from matplotlib.figure import Figure  # half a second to import

    labels = {name: prepared.report.labels for name, prepared in sets.items() if prepared.report.labels}
    figure = Figure(figsize=(6 * (1 + bool(labels)), 3 * len(sets)), layout="constrained")
    axes: Any = figure.subplots(len(sets), 1 + bool(labels), squeeze=False)
    for row, (name, prepared) in zip(axes, sets.items(), strict=True):
        _draw_lengths(row[0], name, prepared)
        if labels:
            _draw_answers(row[1], name, prepared.report.labels)
    with warnings.catch_warnings():
        # Answers in a script that the font lacks are drawn as boxes, which say as much as the warnings do.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        save_figure(figure, target, dpi=_DPI, metadata={_SETS: fingerprints})


def _shows(target: Path, fingerprints: str) -> bool:
    """Whether the picture at `target` was drawn of these sets: a PNG holds short texts as they are."""
    try:
        return f"{_SETS}\0{fingerprints}".encode() in target.read_bytes()
    except OSError:
        return False  # none there


def _draw_lengths(axis: Any, name: str, prepared: PreparedSet) -> None:
    counts, longest = prepared.report.length_counts, prepared.max_seq_length
    step = longest / NUM_BINS
    edges = [(number + 0.5) * step for number in range(NUM_BINS + 1)]
    axis.bar(edges, counts, width=0.9 * step, color=["tab:blue"] * NUM_BINS + ["tab:red"])
    axis.axvline(longest, color="black", linewidth=0.8)
    axis.set_xlabel(f"tokens before anything is cut or dropped (red: over {longest})")
    axis.set_ylabel("rows")
    axis.set_title(
        f"{name}: {prepared.num_examples} examples, {format_ratio(prepared.report.target_ratio)} of the tokens trained"
    )


def _draw_answers(axis: Any, name: str, labels: Mapping[str, int] | None) -> None:
    shown = list((labels or {}).items())[:_MOST_ANSWERS][::-1]
    axis.barh([_short(label) for label, _ in shown], [count for _, count in shown])
    axis.set_title(f"{name}: answers")


def _short(text: str) -> str:
    """Without what matplotlib would take for a formula."""
    text = text.replace("$", r"\$")
    return text if len(text) <= 24 else f"{text[:23]}…"
