"""The section `health`: what is done about ranks that hang, and about losses that are no good."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from megatune.config.fields import Count, CountOrZero, NonNegative, Section


class HealthSection(Section):
    """Watching over the ranks and the loss while training."""

    hang_timeout_s: NonNegative = Field(
        default=600.0,
        description="End the job when a rank shows no progress for so long (twice that to load, save and for "
        "the first step); 0: never.",
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        default="stop",
        description="When loss or gradients are not finite: stop, leave the step out, or go back to the last "
        "checkpoint and on behind the data since.",
    )
    on_spike: Literal["off", "warn", "skip", "rollback", "stop"] = Field(
        default="off", description="When the loss jumps above the running median times spike_factor."
    )
    spike_factor: Annotated[float, Strict(), Field(gt=1, allow_inf_nan=False)] = Field(
        default=3.0, description="A loss above the median of spike_window steps times this is a spike."
    )
    spike_window: Annotated[int, Strict(), Field(ge=5, le=1000)] = Field(
        default=50, description="Steps the median is taken over; judged once half of them are there."
    )
    max_bad_steps: Count = Field(
        default=10, description="Steps left out one after the other before the run stops."
    )
    max_rollbacks: CountOrZero = Field(default=3, description="Rollbacks in a run before it stops.")
    slow_rank_factor: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] = Field(
        default=1.5,
        description="Name a rank that takes so many times what the others take for a step, three windows in a row, "
        "and holds them up by it; 0: never.",
    )
    slow_rank_window: Count = Field(default=20, description="Steps that a rank's time is averaged over.")
