"""Where rows come from: `data.train` and `data.validation`."""

from typing import Any, Self

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from megatune.config.fields import Count, PathText, Positive, Section, Text


def source_fields(value: object) -> object:
    """`value` as the fields of a `DataSource`: a bare path or a list of them becomes `{"paths": [...]}`.

    A list with a section in it is a mixture. Anything else comes back unchanged, for the validation to
    refuse. Raises ValueError when `path` and `paths` are both given.

    >>> source_fields("train.jsonl")
    {'paths': ['train.jsonl']}
    >>> source_fields([{"path": "a.jsonl", "weight": 2}, "b.csv"])
    {'mixture': [{'path': 'a.jsonl', 'weight': 2}, 'b.csv']}
    """
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {"mixture": value}
    if isinstance(value, (str, list)):
        value = {"paths": value}
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    if "path" in fields:
        if "paths" in fields:
            raise ValueError("given by path or by paths, not by both")
        fields["paths"] = fields.pop("path")
    if isinstance(fields.get("paths"), str):
        fields["paths"] = [fields["paths"]]
    return fields


class Rows(Section):
    """Rows that are read alike: files, folders, globs, or a hub id."""

    paths: list[PathText] = Field(
        default_factory=list,
        description="Files (jsonl, json, csv, tsv, parquet, txt; .gz and .zst of them), folders, globs, or one hub "
        "id; `path` for a single one.",
    )
    split: Text | None = Field(
        default=None, description="Split of a folder or a hub data set, as in train or train[:5%]."
    )
    columns: dict[Text, Text] = Field(
        default_factory=dict, description="Name the task expects -> name of the column in the file."
    )
    max_samples: Count | None = Field(default=None, description="Read the first rows only, so many.")

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_paths(cls, value: object) -> object:
        return source_fields(value)


class MixturePart(Rows):
    """One source of a mixture."""

    weight: Positive | None = Field(
        default=None,
        description="Share of the rows of an epoch, relative to the other weights; give all parts one, or none.",
    )

    @model_validator(mode="after")
    def _names_its_rows(self) -> Self:
        if not self.paths:
            raise ValueError("a section with path or paths")
        return self


class DataSource(Rows):
    """Rows of one split. Written as a path, a list of paths, a section, or a list of sections (a mixture)."""

    mixture: list[MixturePart] = Field(
        default_factory=list, description="Several sources, each {path, columns, weight, ...}."
    )

    @model_validator(mode="after")
    def _names_its_rows(self) -> Self:
        if bool(self.paths) == bool(self.mixture):
            raise ValueError("given by path, paths or mixture, and by one of them only")
        if self.mixture and (self.split or self.columns or self.max_samples):
            raise ValueError(
                "a mixture without split, columns and max_samples beside it: give them in each part"
            )
        if len({part.weight is None for part in self.mixture}) > 1:
            raise ValueError("a mixture whose parts all have a weight, or none")
        return self

    @property
    def parts(self) -> list[Rows]:
        """The sources to read, one after another."""
        return list(self.mixture) or [self]

    @property
    def weights(self) -> list[float] | None:
        """The weight of each part; None where every row comes once."""
        found = [part.weight for part in self.mixture if part.weight is not None]
        return found or None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        fields: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        properties = {**fields["properties"], "path": {"type": "string"}}
        section = {**fields, "properties": properties}
        section["anyOf"] = [{"required": [key]} for key in ("paths", "path", "mixture")]
        items = {"anyOf": [fields["properties"]["paths"]["items"], fields["properties"]["mixture"]["items"]]}
        bare_list = {"type": "array", "items": items, "minItems": 1}
        return {"anyOf": [{"type": "string"}, bare_list, section]}
