"""What the programs of a suite print, as tables: lines that hold the same figures stand under each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from megatune.report.tables import format_cell, render_table
from megatune.units import format_bytes

_ABOUT = frozenset(("machine", "commit", "schema", "time"))
"""What the record says of the whole suite. Some programs begin with a line of nothing else, which has `python`."""

Rows = list[dict[str, str]]


def render_tables(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The table of a record's cases, given as `rows`, unless there are none, and those of what programs printed."""
    if rows:
        yield render_table(rows, title=record["about"])
    for case, printed in printed_tables(record):
        yield render_table(printed, title=f"{record['suite']}: {case}")


def printed_tables(record: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """(case, rows of cells) of the last round of each program of `record`; a case may have several."""
    for case in record["cases"]:
        if case["failure"] or "printed" not in case:
            continue
        by_names: dict[tuple[str, ...], Rows] = {}
        for line in case["printed"][-1]:
            if "python" not in line:
                row = dict(_figures(line))
                by_names.setdefault(tuple(row), []).append(row)
        yield from ((case["name"], rows) for names, rows in by_names.items() if names)


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name without its unit, cell) of each figure of a line."""
    for name, value in line.items():
        if name in _ABOUT:
            continue
        if isinstance(value, Mapping):
            for part, inner in value.items():
                yield f"{_plain(name)}, {part}", _cell(name, inner)
        else:
            yield _plain(name), _cell(name, value)


def _plain(name: str) -> str:
    """Where the cell has the unit, the name needs none."""
    if name.endswith("bytes_per_s"):
        name = name.removesuffix("bytes_per_s").rstrip("_") or "rate"
    elif "_per_" not in name:
        name = name.removesuffix("_s").replace("_bytes", "")
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (" .. " if "range" in name else ", ").join(_cell(name, one) for one in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return format_cell(value)
    if name.endswith("bytes_per_s"):
        return f"{format_bytes(value)}/s"
    if "_per_" in name:
        return f"{value:.4g}"
    if name.endswith("_s"):
        return _seconds(value)
    return format_bytes(value) if "bytes" in name.split("_") else format_cell(value)


def _seconds(value: float) -> str:
    """
    >>> _seconds(0.00121), _seconds(0.0834), _seconds(2.5)
    ('1.21 ms', '83.4 ms', '2.5 s')
    """
    return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1e3 * value:.3g} ms"
