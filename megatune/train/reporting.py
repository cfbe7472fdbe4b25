"""Where the records of a run go: metrics.jsonl first, then the trackers and the screen. The first rank writes."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from megatune.config import Run
from megatune.engine.world import World
from megatune.launch.ranks import rank_log
from megatune.launch.run_folder import RunFolder
from megatune.report.metrics import MetricsWriter, read_metrics
from megatune.report.progress import Progress
from megatune.report.records import Record, StepRecord
from megatune.report.tensorboard import TensorBoardSink


class Reporter:
    """Writes the records of one start of a run, on the first rank.

    Every rank calls everything but `note` and `close`: a disk that is full ends all ranks and not one.
    """

    def __init__(self, run: Run, folder: RunFolder, total_steps: int, world: World) -> None:
        self._world = world
        self._closing = ExitStack()
        self._sinks: list[Callable[[Record], None]] = []
        self._progress: Progress | None = None
        self._logging_steps = run.train.logging_steps
        self._total_steps = total_steps
        world.first_rank(lambda: self._open(run, folder))

    def _open(self, run: Run, folder: RunFolder) -> None:
        self.metrics = MetricsWriter(folder.metrics)
        self._closing.callback(self.metrics.close)
        self._sinks.append(self.metrics.write)
        if "tensorboard" in run.report_to:
            sink = TensorBoardSink(folder.tensorboard)
            self._closing.callback(sink.close)
            self._sinks.append(sink.write)
        log_path = rank_log()
        log = self._closing.enter_context(log_path.open("a", encoding="utf-8")) if log_path else None
        self._progress = self._closing.enter_context(Progress(self._total_steps, log=log))

    def cut_back(self, step: int, *, keep_evaluation: bool = True) -> None:
        """Forget what was written after `step`: the run goes on from there. Collective.

        `keep_evaluation`: whether an evaluation at `step` itself stays.
        """
        self._world.first_rank(lambda: self._cut_back(step, keep_evaluation))

    def _cut_back(self, step: int, keep_evaluation: bool) -> None:
        lost = self.metrics.cut_back(step, keep_evaluation=keep_evaluation)
        if lost is not None:
            self._write(lost)

    def earlier_saves(self) -> list[dict[str, Any]]:
        """First rank: the lines about saves that are in the metrics so far."""
        return [entry for entry in read_metrics(self.metrics.path) if entry.get("event") == "save"]

    def write(self, record: Record) -> None:
        """Keep one record and show it. Collective."""
        self._world.first_rank(lambda: self._write(record))

    def _write(self, record: Record) -> None:
        for sink in self._sinks:
            sink(record)
        if self._progress is not None and isinstance(record, StepRecord) and self._is_shown(record.step):
            self._progress.update(record)

    def note(self, text: str) -> None:
        """Show a line."""
        if self._progress is not None:
            self._progress.note(text)

    def close(self) -> None:
        """Make everything durable."""
        self._closing.close()

    def _is_shown(self, step: int) -> bool:
        return step % self._logging_steps == 0 or step == self._total_steps
