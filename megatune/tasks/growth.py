"""How large the values of a template are, and what each growing operation would write: asked before it is done."""

import datetime
import re
from collections.abc import Callable, Collection, ItemsView, Iterator, KeysView, Mapping, ValuesView
from itertools import chain
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

MOST_CHARS = 10**7
"""Of a rendered text, and of each text, list and mapping on the way to it."""
MOST_DEPTH = 100
"""Of lists in lists."""
MOST_LISTS = 10**5
"""In a list, with those in them."""
_MOST_BITS = 10**5
_MOST_WIDTH = 10**6
_ENTRY_CHARS = 4  # quotes and a comma
_OTHER_CHARS = 25  # a float, a date, None
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\d+|\*)?(?:\.(\d+|\*))?")


class TooMuchError(SecurityError):
    """A template would write, or take, more than there is room or time for."""


def refuse(is_too_much: bool, why: str) -> None:
    """Raise TooMuchError, or not."""
    if is_too_much:
        raise TooMuchError(why)


def check_chars(num_chars: int) -> None:
    """Raise TooMuchError where that is no text to write."""
    refuse(num_chars > MOST_CHARS, f"what it writes has more than {MOST_CHARS} characters")


def extent(value: object) -> tuple[int, int]:
    """Characters that a value has as a text, about, and how deep its lists and mappings nest.

    What stands in several places counts at each: that is how it is written. Raises TooMuchError beyond the bounds.
    """
    num_chars, num_lists, deepest = 0, 0, 0
    left: list[tuple[object, int]] = [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, str | bytes):
            num_chars += len(one)
        elif isinstance(one, int):
            refuse(one.bit_length() > _MOST_BITS, "a number in it is too large")
            num_chars += one.bit_length() // 3 + 1
        elif isinstance(one, _CONTAINERS):
            num_lists, deepest = num_lists + 1, max(deepest, depth)
            refuse(num_lists > MOST_LISTS, f"it nests more than {MOST_LISTS} lists")
            refuse(depth > MOST_DEPTH, f"it nests lists more than {MOST_DEPTH} deep")
            parts = list(chain.from_iterable(one.items())) if isinstance(one, dict) else list(one)
            num_chars += _ENTRY_CHARS * len(parts)
            check_chars(num_chars)
            if set(map(type, parts)) <= {str}:  # the usual list, without a turn for each entry
                num_chars += sum(map(len, parts))
            else:
                left.extend((part, depth + 1) for part in parts)
        else:
            num_chars += _OTHER_CHARS
        check_chars(num_chars)
    return num_chars, deepest


def taken(parts: Iterator[object]) -> list[object]:
    """What an iterator gives, refused before it is too much."""
    found, num_chars = [], 0
    for part in parts:
        num_chars += _chars(part) + _ENTRY_CHARS
        check_chars(num_chars)
        found.append(part)
    return found


def _chars(value: object) -> int:
    return extent(value)[0]


# What stands on both sides of an operator.


def _product(left: Any, right: Any) -> None:
    for one, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(one, str | bytes):
            check_chars(len(one) * times)
        # A list of lists would multiply with each level.
        refuse(isinstance(one, list | tuple) and isinstance(times, int), "it multiplies a list")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        refuse(bits > _MOST_BITS, "it multiplies numbers that are too large")


def _power(left: Any, right: Any) -> None:
    are_whole = isinstance(left, int) and isinstance(right, int)
    refuse(are_whole and left.bit_length() * max(0, right) > _MOST_BITS, "a power in it is too large")


def _sum(left: Any, right: Any) -> None:
    if all(isinstance(one, str | bytes | list | tuple) for one in (left, right)):
        check_chars(len(left) + len(right))


def _percent(left: Any, right: Any) -> None:
    """Of `'%10d' % 5`."""
    if not isinstance(left, str):
        return
    marks = _PERCENT.findall(left)
    widths = [one for mark in marks for one in mark if one]
    refuse("*" in widths, "a width in it is given by a value")
    # Of a mapping each mark may write all.
    num_times = len(marks) if isinstance(right, Mapping) else 1
    check_chars(len(left) + _widths(widths) + num_times * _chars(right))


OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "*": _product,
    "**": _power,
    "+": _sum,
    "%": _percent,
}
"""Each raises TooMuchError for operands that it should not be given."""


# Methods and filters, with the parameters that they have in Python or in jinja2, from the value on.


def _format(text: str, *args: object, **kwargs: object) -> None:
    num_chars, at = len(text), 0
    for _, field, spec, _ in Formatter().parse(text):
        if field is None:
            continue
        refuse("{" in (spec or ""), "a width in it is given by a value")
        if "." in field or "[" in field:
            raise SecurityError(
                f"format cannot look into a value: give what {{{field}}} reads a name of its own"
            )
        num_chars += _widths(re.findall(r"\d+", spec or ""))
        if not field or field.isdecimal():
            place = int(field) if field and len(field) < 7 else at
            at += not field
            num_chars += _chars(args[place]) if place < len(args) else 0
        else:
            num_chars += _chars(kwargs.get(field))
        check_chars(num_chars)


def _replace(text: object, old: object, new: object, *_rest: object, **_others: object) -> None:
    _chars(text)
    written = str(text)
    check_chars(len(written) + written.count(str(old)) * _chars(new))


def _join_method(text: str, parts: Collection[object]) -> None:
    _join(parts, text)


def _join(value: Collection[object], d: object = "", attribute: object = None) -> None:
    if attribute is not None:
        raise SecurityError("join takes no attribute here: write | map(attribute=...) | join")
    between = _chars(d)
    if isinstance(value, str):
        check_chars(len(value) * (1 + between))
        return
    num_chars = 0
    for one in value:
        num_chars += _chars(one) + between
        check_chars(num_chars)


def _center(_value: object, width: object = 80, *_rest: object, **_others: object) -> None:
    _width(width)


def _expandtabs(text: str, tabsize: object = 8) -> None:
    check_chars(len(text) + text.count("\t") * max(0, _width(tabsize)))


def _indent(s: object, width: object = 4, *_rest: object, **_others: object) -> None:
    step = len(width) if isinstance(width, str) else max(0, _width(width))
    num_lines = len(str(s).splitlines()) + 1
    check_chars(_chars(s) + num_lines * step)


def _tojson(value: object, indent: object = None) -> None:
    num_chars, depth = extent(value)
    step = 0 if indent is None else _width(indent)
    check_chars(num_chars + num_chars // _ENTRY_CHARS * depth * max(0, step))


def _slice(_value: object, slices: object = 0, *_rest: object, **_others: object) -> None:
    _width(slices)


def _batch(_value: object, linecount: object = 0, *_rest: object, **_others: object) -> None:
    _width(linecount)


def _round(_value: object, precision: object = 0, *_rest: object, **_others: object) -> None:
    _width(precision)


def _add_up(_value: object, _attribute: object = None, start: object = 0, **_others: object) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum adds up numbers; start has to be one")


def _format_filter(value: object, *args: object, **kwargs: object) -> None:
    _percent(str(value), kwargs or args)


def _strftime(_value: object, format: str) -> None:
    refuse(len(format) > 100, "the format of a date in it is too long")


def _width(value: object) -> int:
    """A number, which is refused where it is no width or count; TypeError for what is none."""
    if not isinstance(value, int):
        raise TypeError(f"a width or count has to be a whole number, not {type(value).__name__}")
    refuse(abs(value) > _MOST_WIDTH, "a width or count in it is too large")
    return value


def _widths(numbers: list[str]) -> int:
    refuse(any(len(one) > 7 for one in numbers), "a width in it is too large")
    return sum(map(int, numbers))


Check = Callable[..., None] | None
"""Raises for what an operation should not be given; None for one that writes no more than it is given, but for
a constant factor."""

_NOT_GROWING = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric "
    "isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_DATE = dict.fromkeys(["date", "isoformat", "time", "timestamp", "weekday"]) | {"strftime": _strftime}
METHODS: dict[tuple[type, ...], dict[str, Check]] = {
    (str,): dict.fromkeys(_NOT_GROWING.split())
    | {
        "center": _center,
        "expandtabs": _expandtabs,
        "format": _format,
        "join": _join_method,
        "ljust": _center,
        "replace": _replace,
        "rjust": _center,
        "zfill": _center,
    },
    (list, tuple): dict.fromkeys(["copy", "count", "index"]),
    (dict,): dict.fromkeys(["copy", "get", "items", "keys", "values"]),
    (int, float): dict.fromkeys(["bit_length", "is_integer"]),
    (datetime.date, datetime.time): _DATE,
}
"""All methods that a template may call, by the type that has them."""

_PLAIN_FILTERS = (
    "abs attr capitalize count d default dictsort e escape filesizeformat first float forceescape groupby int "
    "items last length list lower map max min reject rejectattr reverse safe select selectattr sort string "
    "striptags title trim truncate unique upper urlencode wordcount"
)
FILTERS: dict[str, Check] = dict.fromkeys(_PLAIN_FILTERS.split()) | {
    "batch": _batch,
    "center": _center,
    "format": _format_filter,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "sum": _add_up,
    "tojson": _tojson,
}
"""All filters that a template may use."""
