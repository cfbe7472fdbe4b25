"""The resolved run file: every value with where it came from. `load_run` reads it back to the same run.

What is left to the planner stays so: a job plans on its own machines.
"""

from collections.abc import Iterator
from pathlib import Path

from megatune.config.document import format_value
from megatune.config.load import LoadedRun, leaves

_INDENT = "  "


def resolved_yaml(loaded: LoadedRun) -> str:
    """All keys of the run as YAML, each line with its origin as a comment."""
    lines = [line if origin is None else f"{line}  # {origin}" for line, origin in _lines(loaded)]
    return "\n".join(("# Every key of the run, and where its value came from.", *lines)) + "\n"


def resolved_values(loaded: LoadedRun) -> str:
    """The same without comments: two runs are equal when these are."""
    return "\n".join(line for line, _ in _lines(loaded))


def _lines(loaded: LoadedRun) -> Iterator[tuple[str, str | None]]:
    """Each line with the origin of its value; None for one that opens a section."""
    opened: tuple[str, ...] = ()
    for key, value in leaves(loaded.run):
        above = key[:-1]
        for depth, name in enumerate(above):
            if above[: depth + 1] != opened[: depth + 1]:
                yield f"{_INDENT * depth}{name}:", None
        opened = above
        name = ".".join(key)
        shown = "auto" if name in loaded.auto else format_value(value)
        yield f"{_INDENT * len(above)}{key[-1]}: {shown}", loaded.origins[name]


def path_override(key: str, path: Path) -> str:
    """`key="path"` as an argument of `megatune train`, whatever characters the path has."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'
