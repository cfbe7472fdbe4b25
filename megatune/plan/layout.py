"""A layout: how one model and one global batch are spread over the devices."""

from dataclasses import asdict, dataclass
from typing import Any

Offload = str
"""As `parallel.offload`: none, optimizer, all, or nvme:/path."""
OFFLOAD_KINDS = ("none", "optimizer", "all", "nvme")
"""From what costs least time to what costs most."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One choice of everything the planner chooses. The global batch is the same in all of them."""

    tensor_parallel: int
    data_parallel: int
    micro_batch: int
    """Sequences in one forward of one data-parallel rank."""
    accumulation: int
    gradient_checkpointing: bool
    offload: Offload = "none"
    zero_stage: int = 3

    @property
    def num_devices(self) -> int:
        return self.tensor_parallel * self.data_parallel

    @property
    def global_sequences(self) -> int:
        return self.micro_batch * self.accumulation * self.data_parallel

    @property
    def offload_kind(self) -> str:
        """One of OFFLOAD_KINDS."""
        return self.offload.partition(":")[0]

    def to_json(self) -> dict[str, Any]:
        """Under the names of plan.json: `tp`, `dp`, `zero_stage`, ..."""
        values = asdict(self)
        return {"tp": values.pop("tensor_parallel"), "dp": values.pop("data_parallel"), **values}

    def __str__(self) -> str:
        words = [
            f"tp={self.tensor_parallel} dp={self.data_parallel} micro_batch={self.micro_batch}",
            f"accumulation={self.accumulation} zero_stage={self.zero_stage}",
        ]
        words += ["checkpointing"] * self.gradient_checkpointing
        words += [f"offload={self.offload}"] * (self.offload != "none")
        return " ".join(words)
