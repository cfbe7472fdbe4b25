"""The hosts of a run that is started over ssh, in the format of DeepSpeed's hostfile.

# name        ranks
node01        slots=8
me@node02     slots=8
"""

import re
from dataclasses import dataclass
from pathlib import Path

from megatune.errors import ConfigError

_FORM = "`host slots=N`"
# Handed to ssh as an argument of its own: a name must not begin with a dash, and needs no more than this.
_HOST = re.compile(r"(?:[\w.-]+@)?[\w:\[][\w.:%\[\]-]*", re.ASCII)
_SLOTS = re.compile(r"slots=([1-9]\d{0,4})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Host:
    """One line of a hostfile."""

    name: str
    """As ssh takes it: `node01`, `user@node01`, an address, or an alias of the user's ssh config."""
    slots: int
    """Ranks to start there."""


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of the file `path`, in its order: the first one has rank 0.

    Raises ConfigError with every wrong line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"launch.hostfile = {path} cannot be read: {reason}."]) from error
    return parse_hostfile(text, source=str(path))


def parse_hostfile(text: str, *, source: str) -> list[Host]:
    """The hosts in `text`. `source` names it in the ConfigError for wrong lines."""
    hosts: list[Host] = []
    lines: dict[str, int] = {}  # host without the user -> its line
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        found = _problem(words, line)
        name = words[0].rpartition("@")[2].lower()
        if found is None and name in lines:
            found = f"{words[0]} stands in line {lines[name]} already; one line a host, with all its slots."
        if found is not None:
            problems.append(f"line {number}: {found}")
            continue
        lines[name] = number
        hosts.append(Host(name=words[0], slots=int(words[1].partition("=")[2])))
    if not hosts and not problems:
        problems = [f"it names no host; write one line {_FORM} for each."]
    if problems:
        raise ConfigError(problems, source=source)
    return hosts


def _problem(words: list[str], line: str) -> str | None:
    """What is wrong with one line, in a sentence."""
    if len(words) != 2 or not words[1].startswith("slots="):
        return f"{line.strip()!r} is not of the form {_FORM}."
    if not _HOST.fullmatch(words[0]):
        return f"{words[0]!r} is no name of a host; letters, digits and . _ - : are allowed, or user@host."
    if not _SLOTS.fullmatch(words[1]):
        return f"{words[1]!r} must be slots=N with N from 1 to 99999."
    return None
