"""What a rule finds, and what is known about the run beside the script's text."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megatune.launch.slurm.lint.parse import BatchScript

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class LintFacts:
    """What is known of the run that a script trains; None is unknown, and its rules say nothing then."""

    world_size: int | None = None
    tensor_parallel: int | None = None
    gpus_per_node: int | None = None
    host_bytes_per_node: int | None = None
    """Without activations, buffers and data."""
    save_steps: int | None = None
    has_checkpoints: bool | None = None
    """Whether the run saves while it trains. A stop signal makes megatune save in any case."""
    step_seconds: float | None = None
    save_seconds: float | None = None
    eta_s: float | None = None
    """Time that the rest of the run needs."""
    eta_source: str | None = None
    """Who says so."""
    grace_s: float | None = None
    """Seconds between the warning and the end of the job."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mistake or risk in a script."""

    rule: str
    severity: Severity
    line: int | None
    """Counted from 1; None for what is missing altogether."""
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{self.severity}: {place}{self.message} {self.fix} [{self.rule}]"

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Where a rule has found something, and what, in one sentence."""

    line: int | None
    message: str
    fix: str | None = None
    """Where the rule's own fix is not the right one."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of mistake."""

    name: str
    severity: Severity
    check: Callable[[BatchScript, LintFacts], Iterator[Hit]]
    fix: str
