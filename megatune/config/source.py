"""Where rows come from: `data.train` and `data.validation`."""

from typing import Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from megatune.config.fields import PathText, Section, Text


def source_fields(value: object) -> object:
    """`value` as the fields of a `DataSource`: a bare path or a list of them becomes `{"paths": [...]}`.

    Anything else comes back unchanged, for the validation to refuse. Raises ValueError when `path` and
    `paths` are both given.

    >>> source_fields("train.jsonl")
    {'paths': ['train.jsonl']}
    """
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


class DataSource(Section):
    """Rows of one split: files, folders, or a hub id. Written as a path, a list of paths, or a section."""

    paths: list[PathText] = Field(
        min_length=1,
        description="Files (jsonl, csv, tsv, parquet, txt), folders or one hub id; `path` for a single one.",
    )
    split: Text | None = Field(
        default=None, description="Split of a hub data set, as in train or train[:5%]."
    )
    columns: dict[Text, Text] = Field(
        default_factory=dict, description="Name the task expects -> name of the column in the file."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_paths(cls, value: object) -> object:
        return source_fields(value)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        fields: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        paths = fields["properties"]["paths"]
        section = {**fields, "properties": {**fields["properties"], "path": {"type": "string"}}}
        section["anyOf"] = [{"required": ["paths"]}, {"required": ["path"]}]
        del section["required"]
        bare_list = {key: paths[key] for key in ("type", "items", "minItems")}
        return {"anyOf": [{"type": "string"}, bare_list, section]}
