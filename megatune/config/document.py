"""YAML in and out: plain values with the line of each key, and nothing that surprises.

Differences from `yaml.safe_load`: `1e-5` is a number, `12:00:00` and dates are text (YAML 1.1 reads the time
as 43200), a key given twice is an error, and anchors, tags, deep nesting and files over 1 MiB are refused.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatune.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 16

Key = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A parsed mapping. `lines` holds the line (from 1) of every key, by its path of names."""

    values: dict[str, Any]
    lines: dict[Key, int]


class _Loader(yaml.SafeLoader):
    """Composes nodes under the limits; `_Reader` turns them into values."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it open
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _marked(
                "anchors (&) and aliases (*) are not allowed; write the value out", event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise _marked(f"tags ({event.tag}) are not allowed; write the plain value", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise _marked(f"values are nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_BOOLS = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
# Forty digits are beyond every limit of the run file and within what int() converts.
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,40})")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.?[0-9]*[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9]*|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))"
    r"|[1-9][0-9_]{41,}|\.(nan|NaN|NAN)"
)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    (
        "bool",
        re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"),
        "yYnNtTfFoO",
    ),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
):
    # PyYAML calls match(), which does not need the whole text to fit.
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), list(_first))


def _marked(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


@dataclass
class _Reader:
    """Nodes into values, gathering every bad key."""

    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def value(self, node: yaml.Node, path: Key) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return _scalar(node.tag.removeprefix(_TAG), node.value)

    def _mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            name = self._name(key_node, line)
            if name is None:
                continue
            key = (*path, name)
            if name in values:
                first = self.lines[key]
                self.problems.append(
                    f"{'.'.join(key)} is given twice, in line {first} and line {line}; keep one"
                )
                continue
            self.lines[key] = line
            values[name] = self.value(value_node, key)
        return values

    def _name(self, node: yaml.Node, line: int) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str":
            return str(node.value)
        found = node.value if isinstance(node, yaml.ScalarNode) else "a list or section"
        self.problems.append(f"line {line}: a key must be a name, but {found!r} is none; put it in quotes")
        return None


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return _BOOLS[text.lower()]
    if kind == "int":
        return int(text.replace("_", ""))
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read_document(text: str, *, source: str) -> Document:
    """Parse a run file. Raises ConfigError with file, line and column, or with every duplicate key."""
    node = _compose(text, source)
    if node is None:
        raise ConfigError(["the file is empty; `megatune init` writes one to start from"], source=source)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(["the file must hold sections such as `model:` and `train:`"], source=source)
    reader = _Reader()
    values = reader.value(node, ())
    if reader.problems:
        raise ConfigError(reader.problems, source=source)
    return Document(values=values, lines=reader.lines)


def read_value(text: str, *, source: str) -> Any:
    """Parse the right-hand side of an override: a scalar, a list or a section in braces."""
    node = _compose(text, source)
    reader = _Reader()
    value = None if node is None else reader.value(node, ())
    if reader.problems:
        raise ConfigError(reader.problems, source=source)
    return value


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _located(error, source) from error
    except yaml.YAMLError as error:  # the reader's own: a character that YAML does not allow
        raise ConfigError([" ".join(str(error).split())], source=source) from error


def _located(error: yaml.MarkedYAMLError, source: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "this is not YAML"
    if "'\\t'" in problem:
        problem += "; indent with spaces, not with tabs"
    place = source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
    return ConfigError([problem], source=place)


_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")


def format_value(value: object) -> str:
    """`value` on one line of YAML that reads back as the same value.

    >>> format_value(["a", "yes", 1e-05, None])
    '[a, "yes", 1e-05, null]'
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    if isinstance(value, list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{format_value(key)}: {format_value(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, (str, Path)):
        return _format_text(str(value))
    raise TypeError(f"a run file holds no {type(value).__name__}")


def _format_text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if tag == _TAG + "str":
            return text
    return '"' + "".join(_escape(char) for char in text) + '"'


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
