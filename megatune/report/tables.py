"""Rows as a table for people or as one JSON object for programs."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from megatune.report.records import finite_json

_WIDTH_WITHOUT_TERMINAL = 200  # a file has no width; rich would cut cells at 80


def render_table(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None, title: str | None = None
) -> Table:
    """`rows` as a table; `columns` picks and orders them (default: all, in order of appearance).

    None and missing cells show as n/a, numbers stand to the right.
    """
    names = (
        list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    )
    table = Table(title=title, title_justify="left")
    for name in names:
        numeric = all(_is_number(row.get(name)) for row in rows if row.get(name) is not None)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(format_cell(row.get(name))) for name in names))  # Text: [x] is no markup
    return table


def format_cell(value: Any) -> str:
    """A value as a cell: n/a for None, yes and no, numbers with at most five significant digits."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def to_json(answer: Mapping[str, Any]) -> str:
    """`answer` as valid JSON on several lines; NaN and infinities become null (see `nonfinite`)."""
    clean, nonfinite = finite_json(answer)
    if nonfinite:
        clean["nonfinite"] = nonfinite
    return json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def show(
    answer: Mapping[str, Any], *pictures: RenderableType, as_json: bool, stream: TextIO | None = None
) -> None:
    """Print a command's answer on standard output: one JSON object, or `pictures` of it for people."""
    stream = stream or sys.stdout
    if as_json:
        print(to_json(answer), file=stream, flush=True)
        return
    terminal = stream.isatty()
    console = Console(file=stream, width=None if terminal else _WIDTH_WITHOUT_TERMINAL, highlight=False)
    for picture in pictures:
        # Lines of text are copied from here: only the terminal itself may break them.
        console.print(picture, markup=False, soft_wrap=isinstance(picture, str | Text))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
