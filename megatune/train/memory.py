"""How much memory training takes, moment by moment, to compare with the plan.

On a GPU the allocator's own statistics; on a CPU the anonymous memory of the process (/proc/self/status) and its part
of what ranks share: mapped weight files and libraries are no part of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megatune.data.batches import Batch
from megatune.engine.accounting import HeldBytes
from megatune.report.records import MemoryRecord

_STATUS = Path("/proc/self/status")
_ROLLUP = Path("/proc/self/smaps_rollup")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the high-water mark becomes what is resident now


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes now, and the most since the last reset; None where the system does not say."""

    now: int | None
    peak: int | None
    unused: int | None = None
    """Of a GPU: reserved by the allocator and not allocated, now."""
    resident_peak: int | None = None
    """Of a process: as `peak`, with the files it has mapped."""


class Gauge(Protocol):
    """Reads one kind of memory."""

    def read(self) -> Usage: ...

    def reset_peak(self) -> None: ...

    def shared(self) -> int | None: ...


class HostGauge:
    """The process's anonymous memory.

    There is no high-water mark of it, only one that has mapped files in it. The system may take pages of files
    back at any moment (reclaim, DAMON), the sooner the longer a step takes: a peak is told less the files that
    were there at the fullest moment that was read, not those that are left.
    """

    def __init__(self, status: Path = _STATUS, reset: Path = _RESET, rollup: Path = _ROLLUP) -> None:
        self._status, self._reset, self._rollup = status, reset, rollup
        self._is_told_nothing = False
        self._fullest = (0, 0)
        """Bytes resident, and of files among them, at the fullest moment read since the last reset."""

    def read(self) -> Usage:
        if self._is_told_nothing:
            return Usage(now=None, peak=None)
        try:
            lines = (line.partition(":") for line in self._status.read_text().splitlines())
            fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.endswith(" kB")}
            files, highest = fields["RssFile"] + fields["RssShmem"], fields["VmHWM"]
            self._fullest = max(self._fullest, (fields["RssAnon"] + files, files))
            peak = highest - self._fullest[1]
            return Usage(now=fields["RssAnon"], peak=peak, resident_peak=highest)
        except (OSError, KeyError):
            return Usage(now=None, peak=None)

    def reset_peak(self) -> None:
        try:
            self._reset.write_text(_RESET_PEAK)
            self._fullest = (0, 0)
        except OSError:
            self._is_told_nothing = True  # a peak since the start would be another thing

    def shared(self) -> int | None:
        """Of each page of shared memory the part of one of those that have it (proc(5), Pss_Shmem). Takes some
        milliseconds."""
        try:
            lines = self._rollup.read_text().splitlines()
        except OSError:
            return None
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Shmem:")]
        return found[0] if found else None


class DeviceGauge:
    """What torch's allocator has given out on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> Usage:
        allocated = torch.cuda.memory_allocated(self._device)
        return Usage(
            now=allocated,
            peak=torch.cuda.max_memory_allocated(self._device),
            unused=torch.cuda.memory_reserved(self._device) - allocated,
        )

    def shared(self) -> int | None:
        return None

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)


class MemoryMeter:
    """Follows one rank's memory through its steps. Made before the model is loaded."""

    def __init__(self, device: torch.device, gauge: Gauge | None = None) -> None:
        self._on_gpu = device.type == "cuda"
        self._gauge = gauge or (DeviceGauge(device) if self._on_gpu else HostGauge())
        self._device = device
        self._framework = None if self._on_gpu else self._gauge.read().now
        self.held_bytes: Callable[[], HeldBytes | None] = lambda: None
        """The engine's own count, once there is an engine."""
        self.phase = "loading the model"
        """What the rank was doing last, for people."""
        self._longest: tuple[int, int] | None = None
        self._before: int | None = None
        self._after_forward: int | None = None
        self._peak: int | None = None
        self._most_ever = 0
        self._unused: int | None = None

    @property
    def most_ever(self) -> int:
        """The most so far, mapped files included: `reset_peak` has taken it from the system's own counter."""
        return self._most_ever

    @property
    def framework(self) -> int | None:
        """Before a model was held: the process on a CPU; on a GPU what is outside of torch's allocator."""
        return self._outside_allocator() if self._on_gpu else self._framework

    @property
    def kind(self) -> str:
        """`GPU` or `host`: what the digest of a failed run calls it too."""
        return "GPU" if self._on_gpu else "host"

    @property
    def longest(self) -> str:
        """The micro-batch of the most positions so far, padding included."""
        return "none yet" if self._longest is None else "{} x {} tokens".format(*self._longest)

    def usage(self) -> Usage:
        """At this moment; of a GPU with what is outside of the allocator."""
        usage = self._gauge.read()
        if not self._on_gpu or usage.now is None:
            return usage
        return Usage(now=usage.now + (self._outside_allocator() or 0), peak=usage.peak, unused=usage.unused)

    def saw(self, batches: Sequence[Batch]) -> None:
        """Told of the micro-batches of a step."""
        shapes = [(int(batch.input_ids.shape[0]), int(batch.input_ids.shape[1])) for batch in batches]
        self._longest = max(
            [*shapes, *([self._longest] if self._longest else [])], key=math.prod, default=None
        )

    def step_begins(self) -> None:
        """Between two steps."""
        self._notice(self._gauge.read())
        self._gauge.reset_peak()

    def watch(self, moment: str) -> None:
        """Told by the step when the forward of a micro-batch begins, and when its loss is known."""
        now = self._gauge.read().now
        if moment == "before forward":
            self._before = now
            return
        if now is not None and self._before is not None:
            self._after_forward = max(self._after_forward or 0, now - self._before)

    def step_ends(self) -> None:
        """After the optimizer."""
        usage = self._gauge.read()
        if usage.peak is not None:
            self._peak = max(self._peak or 0, usage.peak)
        self._notice(usage)
        if self._on_gpu:
            self._unused = max(self._unused or 0, usage.unused or 0)

    def record(self, step: int) -> MemoryRecord | None:
        """What was found so far; None before the engine has taken a step."""
        held = self.held_bytes()
        if held is None:
            return None
        framework = self.framework
        outside = (framework or 0) if self._on_gpu else 0
        peak = None if self._peak is None else self._peak + outside
        return MemoryRecord(
            step=step,
            weights=held.weights,
            gradients=held.gradients,
            optimizer=held.optimizer,
            on_host=not self._on_gpu,
            framework=framework,
            after_forward=self._after_forward,
            peak=peak,
            shared_memory=self._gauge.shared(),
            fragmentation=self._unused,
        )

    def _notice(self, usage: Usage) -> None:
        self._most_ever = max(self._most_ever, usage.resident_peak or usage.peak or 0)

    def _outside_allocator(self) -> int | None:
        """What the GPU has in use that torch's allocator knows nothing of: contexts, NCCL, other programs."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)
