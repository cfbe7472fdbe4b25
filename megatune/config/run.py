"""The run file as one frozen value, and its JSON schema for editors."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from megatune.config.fields import RunPath, Section
from megatune.config.health import HealthSection
from megatune.config.parallel import ParallelSection
from megatune.config.sections import (
    CheckpointSection,
    DataSection,
    EvaluateSection,
    LaunchSection,
    ModelSection,
    TrainSection,
)
from megatune.config.slurm import SlurmSection
from megatune.config.tokenizer import TokenizerSection

Precision = Literal["bf16", "fp16", "fp32"]


class Run(Section):
    """One fine-tuning run. Build it with `load_run`, which reports every problem in the user's words."""

    model: ModelSection
    data: DataSection
    tokenizer: TokenizerSection | None = None
    train: TrainSection
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    precision: Precision = Field(
        default="bf16", description="Numbers of forward and backward; bf16 and fp16 keep fp32 master weights."
    )
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    health: HealthSection = Field(default_factory=HealthSection)
    launch: LaunchSection = Field(default_factory=LaunchSection)
    slurm: SlurmSection | None = None
    report_to: list[Literal["tensorboard"]] = Field(
        default_factory=list, description="Trackers beside metrics.jsonl; none for none."
    )
    deepspeed: RunPath | None = Field(
        default=None,
        description="DeepSpeed policy in JSON; a value given there and here must agree.",
        examples=["ds_configs/zero3_bf16.json"],
    )

    @property
    def packs(self) -> bool:
        """Whether several rows share a sequence; a classifier head reads one at a time."""
        return self.data.packing and self.model.head == "lm"

    @model_validator(mode="before")
    @classmethod
    def _without_packing(cls, values: Any) -> Any:
        """A classifier's run has no packing unless it asks for it, which is refused: what is written down must load."""
        sections = values if isinstance(values, dict) else {}
        model, data = sections.get("model"), sections.get("data")
        if isinstance(model, dict) and isinstance(data, dict) and model.get("head") == "classifier":
            return {**sections, "data": {"packing": False, **data}}
        return values

    @field_validator("report_to", mode="before")
    @classmethod
    def _accept_bare_name(cls, value: object) -> object:
        if value == "none" or value == ["none"]:
            return []
        return [value] if isinstance(value, str) else value


def run_schema() -> dict[str, Any]:
    """JSON schema of the run file (draft 2020-12). Foreign spellings are not in it: editors suggest ours."""
    schema = Run.model_json_schema()
    schema["description"] = "A megatune run file."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "megatune run file",
    }
