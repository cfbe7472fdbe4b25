"""The section `parallel`: how the model is spread over the devices, and what leaves them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from megatune.config.fields import Count, Flag, Offload, Positive, Section, ZeroStage, or_auto


class ParallelSection(Section):
    """How the model is spread over the devices."""

    zero_stage: ZeroStage = Field(
        default=3,
        description="What data-parallel ranks share out: 1 optimizer, 2 + gradients, 3 + weights; 0 nothing.",
        json_schema_extra=or_auto,
    )
    tp_size: Count = Field(
        default=1,
        description="Devices that share each layer (tensor parallelism).",
        json_schema_extra=or_auto,
    )
    offload: Offload = Field(
        default="none",
        description="What leaves the device: none; optimizer or all (with the weights) for host memory; nvme:/path for "
        "the optimizer on a local disk.",
        json_schema_extra=or_auto,
    )
    disk_gb_per_s: Positive | None = Field(
        default=None,
        description="What the disk of nvme:/path reads or writes, of one node; without it plans give no times.",
        examples=[6.0],
    )
    leaf_modules: Flag = Field(
        default=True, description="Under stage 3, gather one transformer block at a time."
    )
    keep_gathered: Flag | Literal["auto"] = Field(
        default="auto",
        description="Under stage 3 without offload, keep gathered weights from step to step; auto: where they would "
        "stay from forward to backward anyway, below 5e8 a rank.",
    )

    @property
    def disk_folder(self) -> Path | None:
        """Where `offload` puts the optimizer's states on a local disk; None when it does not."""
        return Path(self.offload.removeprefix("nvme:")) if self.offload.startswith("nvme:") else None
