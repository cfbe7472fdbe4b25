"""Validation errors as sentences: what was asked, what was found and where, what is allowed, how to fix it.

What is allowed is read from the JSON schema, so the sentence cannot differ from the rule.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatune.config.aliases import ALIASES
from megatune.config.document import format_value
from megatune.config.run import run_schema
from megatune.config.settings import Settings, place, shorten

Schema = dict[str, Any]
Location = tuple[str | int, ...]

_DEEPSPEED_BLOCKS = frozenset(
    {
        "zero_optimization",
        "tensor_parallel",
        "optimizer",
        "scheduler",
        "aio",
        "comms_logger",
        "flops_profiler",
    }
)


def explain(error: ValidationError, settings: Settings, *, schema: Schema | None = None) -> list[str]:
    """One sentence for each key at fault, in the order of the schema.

    `schema`: that of another file than the run file; other trainers' names mean nothing there.
    """
    reader = _Explainer(schema or _schema(), settings, knows_foreign_names=schema is None)
    sentences: dict[Location, str] = {}
    for detail in error.errors(include_url=False):
        # The members of a union fail one by one; their common key needs one sentence.
        location, sentence = reader.explain(detail)
        sentences.setdefault(location, sentence)
    return list(sentences.values())


@cache
def _schema() -> Schema:  # asked once a process: drawing it takes 30 ms
    return run_schema()


class _Explainer:
    """Sentences about one set of settings."""

    def __init__(self, schema: Schema, settings: Settings, *, knows_foreign_names: bool) -> None:
        self.schema = schema
        self.foreign = {alias.spelling: alias.key for alias in ALIASES} if knows_foreign_names else {}
        self.settings = settings
        self.listed: set[str] = set()  # sections whose keys were named already: once is enough

    def explain(self, detail: ErrorDetails) -> tuple[Location, str]:
        """The location that the error is about, and the sentence."""
        location, schema = self._locate(detail["loc"])
        if detail["type"] == "extra_forbidden":
            name = str(detail["loc"][len(location)])
            return (*location, name), self._unknown_key(location, schema, name)
        if detail["type"] == "missing":
            return location, _missing(location, schema)
        if detail["loc"][-1] == "[key]":
            location = location[:-1]
        return location, self._wrong_value(location, schema, detail)

    def _locate(self, loc: Location) -> tuple[Location, Schema]:
        """The part of `loc` that names keys, without the union members behind it, and its schema."""
        schema = self.schema
        for depth, part in enumerate(loc):
            inner = self._child(schema, part)
            if inner is None:
                return loc[:depth], schema
            schema = inner
        return loc, schema

    def _child(self, schema: Schema, part: str | int) -> Schema | None:
        for option in self._options(schema):
            inner = option.get("items") if isinstance(part, int) else _property(option, part)
            if inner is not None:
                return dict(inner)
        return None

    def _options(self, schema: Schema) -> Iterator[Schema]:
        if "$ref" in schema:
            yield from self._options(self.schema["$defs"][schema["$ref"].rpartition("/")[2]])
        elif "anyOf" in schema and "properties" not in schema:
            for option in schema["anyOf"]:
                yield from self._options(option)
        elif schema.get("type") != "null":
            yield schema

    def _wrong_value(self, location: Location, schema: Schema, detail: ErrorDetails) -> str:
        options = list(self._options(schema))
        found, own_reason = detail["input"], detail.get("ctx", {}).get("error")
        allowed = str(own_reason) if own_reason else ", or ".join(_describe(option) for option in options)
        hint = "" if own_reason else _value_hint(found, options)
        text = shorten(format_value(found))
        return f"{_label(location)} is {text}{self._origin(location)}; it must be {allowed}.{hint}"

    def _origin(self, location: Location) -> str:
        origin = self.settings.origin_of(tuple(str(part) for part in location))
        return "" if origin is None else f" ({place(origin)})"

    def _unknown_key(self, location: Location, schema: Schema, name: str) -> str:
        keys = sorted(key for option in self._options(schema) for key in option.get("properties", {}))
        section = _label(location)
        owner = f"{section} has no key" if section else "there is no top-level key"
        hint = self._key_hint(section, keys, name)
        sentence = f"{owner} {name!r}{self._origin((*location, name))}. {hint}"
        if section in self.listed:
            return sentence.rstrip()
        self.listed.add(section)
        return f"{sentence}{f'Keys of {section}' if section else 'Top-level keys'}: {', '.join(keys)}."

    def _key_hint(self, section: str, keys: list[str], name: str) -> str:
        """The nearest key: the same name elsewhere, then another tool's name, then a slip of the finger."""
        if not section and self.foreign and name in _DEEPSPEED_BLOCKS:
            return "DeepSpeed's own settings go into a JSON file that the key deepspeed names. "
        elsewhere = self._key_names()
        foreign = self.foreign
        if name in elsewhere:
            return f"Did you mean {elsewhere[name]}? "
        if name in foreign:
            return f"It is called {foreign[name]} here. "
        here = {key: f"{section}.{key}" if section else key for key in keys}
        for names in (here, elsewhere, foreign):
            if near := get_close_matches(name, names, n=1, cutoff=0.6):
                return f"Did you mean {names[near[0]]}? "
        return ""

    def _key_names(self) -> dict[str, str]:
        names = {}
        for section, schema in self.schema["properties"].items():
            for option in self._options(schema):
                names.update({key: f"{section}.{key}" for key in option.get("properties", {})})
        return names


def _property(schema: Schema, name: str) -> Schema | None:
    if name in schema.get("properties", {}):
        return dict(schema["properties"][name])
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, dict) else None


def _label(location: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _missing(location: Location, schema: Schema) -> str:
    examples = schema.get("examples", [])
    example = f" For example: {format_value(examples[0])}" if examples else ""
    return f"{_label(location)} is missing. {schema.get('description', '')}{example}".rstrip()


def _describe(schema: Schema) -> str:
    if "const" in schema:
        return format_value(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(format_value(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        return f"a list, each item {_describe(schema['items'])}"
    if kind == "object":
        keys = ", ".join(sorted(schema.get("properties", {})))
        return f"a section with the keys {keys}" if keys else "a section of names and texts"
    if kind == "string":
        return "a path" if schema.get("format") == "path" else "text"
    return "true or false"


def _range(schema: Schema) -> str:
    if not {"maximum", "exclusiveMaximum", "exclusiveMinimum"} & set(schema):
        return f" of at least {schema['minimum']}" if "minimum" in schema else ""
    low = f" from {schema['minimum']}" if "minimum" in schema else ""
    low = f" above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else low
    high = f" to {schema['maximum']}" if "maximum" in schema else ""
    return f"{low} to below {schema['exclusiveMaximum']}" if "exclusiveMaximum" in schema else low + high


def _value_hint(found: object, options: list[Schema]) -> str:
    kinds = {option.get("type") for option in options}
    if isinstance(found, str):
        names = [str(value) for option in options for value in option.get("enum", [option.get("const", "")])]
        if near := get_close_matches(found, names, n=1):
            return f" Did you mean {near[0]}?"
        if kinds & {"integer", "number"} and re.fullmatch("0[0-9]+", found):
            return f" Write {int(found)}: a number does not begin with 0."
        return (
            " Remove the quotes."
            if kinds & {"integer", "number", "boolean"} and _is_bare_scalar(found)
            else ""
        )
    if isinstance(found, float) and "integer" in kinds and found.is_integer():
        return f" Write {int(found)}."
    plain_text = any(
        option.get("type") == "string" and not {"const", "enum"} & set(option) for option in options
    )
    return " Put it in quotes." if plain_text and isinstance(found, (bool, int, float)) else ""


def _is_bare_scalar(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "yes", "no", "on", "off")
    return True
