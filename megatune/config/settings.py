"""From a parsed file and the command line to one nested dict of values, each with its origin.

A setting is a key path with a value: the keys of a section, or a key that stands at the top level. The file
gives a list of them and the command line another; each is put into our own spelling, then they are applied
in this order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatune.config.aliases import BY_PLACE, NOTHING, VALUES, Alias, Excludes
from megatune.config.document import Document, Key, format_value, read_value
from megatune.config.source import source_fields
from megatune.errors import ConfigError

COMMAND_LINE = "command line"
_SOURCES: tuple[Key, ...] = (("data", "train"), ("data", "validation"), ("data", "test"))
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")


@dataclass(frozen=True)
class Setting:
    """One value somebody gave. `origin` is "run.yaml:12" or "command line"."""

    path: Key
    value: object
    origin: str

    @property
    def name(self) -> str:
        return ".".join(self.path)

    def __str__(self) -> str:
        return f"{self.name}: {shorten(format_value(self.value))}"


@dataclass
class Settings:
    """Everything given, in our own spelling, with what there is to tell about it."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def origin_of(self, path: Key) -> str | None:
        """Where the value at `path` was given last: in a key below it, there, or in a key above it."""
        below = [origin for key, origin in self.origins.items() if key[: len(path)] == path]
        above = [path[:length] for length in range(len(path) - 1, 0, -1) if path[:length] in self.origins]
        return below[-1] if below else self.origins[above[0]] if above else None


def shorten(text: str, limit: int = 80) -> str:
    """`text`, cut to `limit` characters: enough to recognise a value in a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def file_settings(document: Document, file_name: str) -> list[Setting]:
    """The settings of a run file, in its order."""
    return _flatten(document.values, {path: f"{file_name}:{line}" for path, line in document.lines.items()})


def command_line_settings(overrides: Sequence[str], problems: list[str]) -> list[Setting]:
    """The settings of `key.sub=value` arguments; what cannot be read is added to `problems`.

    A value is YAML: a scalar, a list in brackets or a section in braces. The last of equal keys wins.
    """
    given: dict[Key, Setting] = {}
    for text in overrides:
        name, equals, value_text = text.partition("=")
        if not equals or not _DOTTED.fullmatch(name):
            problems.append(
                f"{text!r} on the command line must be key=value, as in train.learning_rate=1e-4."
            )
            continue
        try:
            value = read_value(value_text, source=f"{text!r} on the command line")
        except ConfigError as error:
            problems.append(str(error))
            continue
        for setting in _flatten_value(tuple(name.split(".")), value):
            given[setting.path] = setting
    return list(given.values())


def _flatten_value(path: Key, value: object) -> list[Setting]:
    if len(path) == 1 and isinstance(value, dict) and value:
        return [Setting((*path, name), item, COMMAND_LINE) for name, item in value.items()]
    return [Setting(path, value, COMMAND_LINE)]


def _flatten(values: dict[str, Any], origins: dict[Key, str]) -> list[Setting]:
    settings = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            settings += [Setting((name, sub), item, origins[name, sub]) for sub, item in value.items()]
        else:
            settings.append(Setting((name,), value, origins[name,]))
    return settings


def merge(file: Sequence[Setting], command_line: Sequence[Setting], into: Settings) -> None:
    """Apply both lists to `into`, the command line last. A null takes a value back to its default."""
    for layer in (file, command_line):
        for setting in _translate(layer, into):
            _assign(setting, into)
    for path in _SOURCES:
        _normalise_source(path, into)


def _translate(layer: Sequence[Setting], into: Settings) -> list[Setting]:
    """The layer in our own spelling. A key that is given by two names must be given equally."""
    known: dict[Key, Setting] = {}
    first: dict[Key, Setting] = {}
    exclusions: list[tuple[Setting, Key, object]] = []
    for setting in layer:
        alias = BY_PLACE.get(setting.name)
        try:
            ours = _own_value(setting if alias is None else _own_key(setting, alias))
        except ValueError as error:
            into.problems.append(f"{setting} ({place(setting.origin)}): {error}.")
            continue
        if isinstance(ours.value, Excludes):
            exclusions.append((setting, ours.path, ours.value.value))
        elif ours.value is NOTHING:
            into.notices.append(f"{setting.origin}: {setting} asks for what happens anyway")
        elif ours.path in known and known[ours.path].value != ours.value:
            into.problems.append(_conflict(first[ours.path], setting, ours))
        else:
            known[ours.path], first[ours.path] = ours, setting
            if ours != setting and len(setting.path) < 3:
                into.notices.append(f"{setting.origin}: {setting} is read as {ours}")
    into.problems += [
        problem
        for given, path, value in exclusions
        if (problem := _exclusion(given, path, value, known.get(path)))
    ]
    return list(known.values())


def _own_key(setting: Setting, alias: Alias) -> Setting:
    return replace(setting, path=tuple(alias.key.split(".")), value=alias.convert(setting.value))


def _own_value(setting: Setting) -> Setting:
    if setting.path[:2] in _SOURCES and setting.path[2:] == ("path",):
        return replace(setting, path=(*setting.path[:2], "paths"))
    if isinstance(setting.value, str):
        return replace(setting, value=VALUES.get(setting.name, {}).get(setting.value, setting.value))
    return setting


def _conflict(first: Setting, second: Setting, ours: Setting) -> str:
    return (
        f"{first} ({place(first.origin)}) and {second} ({place(second.origin)}) both set {ours.name}, "
        f"but not to the same value; keep one."
    )


def _exclusion(given: Setting, path: Key, excluded: object, known: Setting | None) -> str | None:
    if known is not None and known.value != excluded:
        return None
    needed = ".".join(path) + ("" if excluded is None else f", and not {format_value(excluded)}")
    return f"{given} ({place(given.origin)}) must come with {needed}."


def place(origin: str) -> str:
    """An origin as messages name it: they begin with the file's name already."""
    return origin if origin == COMMAND_LINE else f"line {origin.rpartition(':')[2]}"


def _assign(setting: Setting, into: Settings) -> None:
    """Put the value at its path, opening the sections above it."""
    section = into.values
    for depth, name in enumerate(setting.path[:-1], start=1):
        above = setting.path[:depth]
        if above in _SOURCES:
            _normalise_source(above, into)
        inner = section.get(name)
        if inner is not None and not isinstance(inner, dict):
            found = f"{'.'.join(above)} is {shorten(format_value(inner))}"
            into.problems.append(
                f"{setting} ({place(setting.origin)}) cannot be set: {found}, not a section."
            )
            return
        section[name] = {} if inner is None else inner
        section = section[name]
    if _is_empty_section(setting, section):
        return
    section[setting.path[-1]] = setting.value
    for path in [key for key in into.origins if key[: len(setting.path)] == setting.path]:
        del into.origins[path]
    into.origins[setting.path] = setting.origin


def _is_empty_section(setting: Setting, values: dict[str, Any]) -> bool:
    """A section without keys, which takes nothing away that was given elsewhere (`section=null` does)."""
    is_null_in_file = setting.value is None and setting.origin != COMMAND_LINE
    is_open = len(setting.path) == 1 and isinstance(values.get(setting.path[0]), dict)
    return is_open and (setting.value == {} or is_null_in_file)


def _normalise_source(path: Key, into: Settings) -> None:
    """Bring a data source to its full form, so that `data.train.split=...` can add to a bare path."""
    section = into.values.get(path[0])
    if not isinstance(section, dict) or section.get(path[1]) is None:
        return
    try:
        section[path[1]] = source_fields(section[path[1]])
    except ValueError:
        return  # the validation calls it again and reports the reason
