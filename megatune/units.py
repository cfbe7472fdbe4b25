"""Bytes, durations and counts as people read them; files and formulas keep plain numbers."""

from collections.abc import Iterable

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "K", "M", "B", "T")


def format_bytes(num_bytes: float | None) -> str:
    """Bytes with a binary unit.

    >>> format_bytes(3 * 2**30)
    '3.00 GiB'
    >>> format_bytes(None)
    'n/a'
    """
    if num_bytes is None:
        return "n/a"
    value, unit = float(num_bytes), 0
    while abs(value) >= 1024 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.2f} {_BINARY[unit]}"


def format_count(count: float | None) -> str:
    """A count with a decimal suffix.

    >>> format_count(134_515_008)
    '134.5M'
    """
    if count is None:
        return "n/a"
    value, unit = float(count), 0
    while abs(value) >= 1000 and unit < len(_DECIMAL) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f}" if unit == 0 else f"{value:.1f}{_DECIMAL[unit]}"


def format_duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss, or with a decimal below a minute.

    >>> format_duration(3725)
    '1:02:05'
    >>> format_duration(7.25)
    '7.2 s'
    """
    if seconds is None:
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"


def format_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs of neighbours as ranges.

    >>> format_ranges([3, 5, 6, 7, 9])
    '3, 5-7, 9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def format_ratio(ratio: float | None) -> str:
    """A share as a percentage.

    >>> format_ratio(0.4183)
    '41.8%'
    """
    return "n/a" if ratio is None else f"{100 * ratio:.1f}%"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "row"), counted(0, "row")
    ('1 row', '0 rows')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
