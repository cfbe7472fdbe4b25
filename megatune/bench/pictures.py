"""Pictures of a record, as PNG: bars with their spread, curves over ranks, the distance to the roofline."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from megatune.bench.compare import Spread
from megatune.bench.figures import CaseFigures, scaling, training_cases

_BAR_INCHES = 0.34


def draw_record(record: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures that the record has the figures for: `bars`, `scaling`, `roofline`."""
    cases = training_cases(record)
    if not cases:
        return {}
    drawn = {"bars": _bars(cases)}
    lines = scaling(cases)
    if lines:
        drawn["scaling"] = _scaling(lines)
    known = [case for case in cases if case.floors is not None]
    if known:
        drawn["roofline"] = _roofline(known)
    return drawn


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _bars(cases: Sequence[CaseFigures]) -> bytes:
    figure = _figure(11, 1.2 + _BAR_INCHES * len(cases))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [case.name + (" (other work)" if case.refused else "") for case in cases]
    _bar_panel(left, names, [case.tokens_per_second for case in cases], "tokens/s", 1.0)
    _bar_panel(
        right, names, [case.cpu_seconds_per_token for case in cases], "processor time a token (ms)", 1e3
    )
    return _png(figure)


def _bar_panel(plot: Any, names: Sequence[str], values: Sequence[Spread], label: str, scale: float) -> None:
    middles = [value.median * scale for value in values]
    below = [(value.median - value.low) * scale for value in values]
    above = [(value.high - value.median) * scale for value in values]
    places = range(len(names))[::-1]
    plot.barh(list(places), middles, xerr=[below, above], capsize=3, color="tab:blue", ecolor="0.2")
    plot.set_yticks(list(places), names)
    plot.set_xlabel(f"{label}: median, lowest and highest round")
    plot.set_xlim(left=0)


def _scaling(lines: Mapping[str, Sequence[CaseFigures]]) -> bytes:
    figure = _figure(6, 4.2)
    plot = figure.subplots()
    for name, points in lines.items():
        ranks = [point.ranks for point in points]
        middles = [point.tokens_per_second.median for point in points]
        spread = [
            [point.tokens_per_second.median - point.tokens_per_second.low for point in points],
            [point.tokens_per_second.high - point.tokens_per_second.median for point in points],
        ]
        (line,) = plot.plot(ranks, middles, "o-", label=name)
        plot.errorbar(ranks, middles, yerr=spread, fmt="none", capsize=3, color=line.get_color())
        ideal = [middles[0] * count / ranks[0] for count in ranks]
        plot.plot(ranks, ideal, "--", linewidth=0.8, color=line.get_color())
    plot.set_xlabel("ranks")
    plot.set_ylabel("tokens/s (dashed: in proportion to the ranks)")
    plot.set_ylim(bottom=0)
    plot.legend()
    return _png(figure)


def _roofline(cases: Sequence[CaseFigures]) -> bytes:
    """How much of its step each case needs at the least for products, memory and links: 100 % is the roof."""
    figure = _figure(8, 1.4 + 2 * _BAR_INCHES * len(cases))
    plot = figure.subplots()
    places = range(len(cases))[::-1]
    for row, (name, color) in enumerate(
        (("products", "tab:green"), ("memory", "tab:orange"), ("links", "tab:blue"))
    ):
        shares = [100 * (getattr(case.floors, name) or 0.0) for case in cases]
        heights = [place + 0.27 - 0.27 * row for place in places]
        plot.barh(heights, shares, height=0.24, color=color, label=name)
        for height, share in zip(heights, shares, strict=True):
            plot.text(share, height, f" {share:.1f} %" if share else " n/a", va="center", fontsize=7)
    plot.set_yticks(list(places), [case.name for case in cases])
    plot.axvline(100.0, color="0.4", linewidth=0.8, linestyle="--")
    plot.set_xlabel("of a step: the least that the measured rates allow")
    plot.set_xlim(0, max(105.0, *(100 * case.floors.highest for case in cases if case.floors)))
    plot.legend(loc="lower right")
    return _png(figure)
