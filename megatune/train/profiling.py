"""`train.profile`: a trace of some steps of the first rank, and one page that says where their time went."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megatune.config.sections import ProfileSection
from megatune.engine.world import World
from megatune.report.step_profile import STEP, summarise
from megatune.train.reporting import Reporter

TRACE, PAGE = "trace.json", "summary.txt"


class StepProfiler:
    """Watches the steps that `section` names. Steps are counted from 1, as metrics.jsonl does."""

    def __init__(
        self,
        section: ProfileSection | None,
        folder: Path,
        world: World,
        reporter: Reporter,
        *,
        total_steps: int,
    ) -> None:
        self._steps = section.range() if section is not None and world.is_first else range(0)
        self._folder, self._world, self._reporter = folder, world, reporter
        self._running: profile | None = None
        if self._steps and self._steps[0] > total_steps:
            reporter.note(
                f"WARNING, there will be no profile: train.profile begins with step {self._steps[0]}, and the "
                f"run ends with step {total_steps}"
            )

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`. The trace is written after the last one that was asked for."""
        if number not in self._steps:
            yield
            return
        if self._running is None:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._world.device.type == "cuda" else []
            self._running = profile(activities=activities)
            self._running.start()
        with record_function(STEP):
            yield
            if self._world.device.type == "cuda":
                torch.cuda.synchronize()
        if number == self._steps[-1]:
            self.finish()

    def finish(self) -> None:
        """Write what there is: also where the run ends before the last step that was asked for."""
        running, self._running = self._running, None
        if running is None:
            return
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self._folder / TRACE))
        page = summarise(json.loads((self._folder / TRACE).read_text())["traceEvents"]).to_text()
        (self._folder / PAGE).write_text(page, encoding="utf-8")
        self._reporter.note(f"profile of {self._folder / TRACE}:\n{page}")
