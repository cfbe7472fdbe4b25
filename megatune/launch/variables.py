"""Whole numbers in the variables by which launchers tell a process its rank."""

import re
from collections.abc import Mapping

_WHOLE = re.compile(r"\d{1,18}", re.ASCII)  # Python refuses to convert very long ones


def whole_number(environ: Mapping[str, str], name: str, problems: list[str]) -> int | None:
    """The number in a variable; None where it is not set, or holds something else, which `problems` is told."""
    value = environ.get(name)
    if not value:
        return None
    if _WHOLE.fullmatch(value):
        return int(value)
    problems.append(f"{name}={value!r} must be a whole number of 0 or more")
    return None


def needed_number(environ: Mapping[str, str], name: str, problems: list[str]) -> int:
    """The number in a variable that must be set; -1 where it is not, or is no number, which `problems` is told."""
    if not environ.get(name):
        problems.append(f"{name} is not set")
    number = whole_number(environ, name, problems)
    return -1 if number is None else number
