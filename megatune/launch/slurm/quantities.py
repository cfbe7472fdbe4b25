"""Durations and amounts of memory as Slurm writes and reads them. None for text that is no such quantity.

Slurm has two grammars for a duration: `90` is 90 minutes as a limit, and nothing that squeue would print.
"""

import re

# Longer numbers are no times, and Python refuses to convert them at some length.
_WHOLE = r"(\d{1,9})"
_LIMIT = re.compile(rf"(?:{_WHOLE}-)?{_WHOLE}(?::{_WHOLE})?(?::{_WHOLE})?", re.ASCII)
_LEFT = re.compile(rf"(?:{_WHOLE}-)?(?:{_WHOLE}:)?{_WHOLE}:{_WHOLE}", re.ASCII)
_MEMORY = re.compile(r"(\d{1,15})([KMGT]?)B?", re.ASCII | re.IGNORECASE)
_FACTORS = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_limit_s(text: str) -> int | None:
    """Seconds of a time limit as sbatch takes it: minutes, [hours:]minutes:seconds or days-hours[:minutes[:seconds]].

    >>> parse_limit_s("1-02:00:00"), parse_limit_s("90"), parse_limit_s("10:30"), parse_limit_s("UNLIMITED")
    (93600, 5400, 630, None)
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        return None
    days, *clock = found.groups()
    parts = [int(part) for part in clock if part is not None]
    if days is not None:
        return _seconds(int(days), *parts)
    if len(parts) == 3:
        return _seconds(0, *parts)
    return _seconds(0, 0, *parts)


def parse_left_s(text: str) -> int | None:
    """Seconds of a duration as squeue prints it, `[days-][hours:]minutes:seconds`; None for UNLIMITED and the like.

    >>> parse_left_s("1-02:03:04"), parse_left_s("4:05"), parse_left_s("NOT_SET")
    (93784, 245, None)
    """
    found = _LEFT.fullmatch(text)
    return None if found is None else _seconds(*(int(part or 0) for part in found.groups()))


def parse_memory_bytes(text: str) -> int | None:
    """Bytes of an amount of memory; a bare number is MiB. None for 0 too, which asks for all that a node has.

    >>> parse_memory_bytes("2G"), parse_memory_bytes("500"), parse_memory_bytes("0")
    (2147483648, 524288000, None)
    """
    found = _MEMORY.fullmatch(text)
    return int(found[1]) * _FACTORS[found[2].upper()] or None if found else None


def _seconds(days: int, hours: int = 0, minutes: int = 0, seconds: int = 0) -> int:
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
