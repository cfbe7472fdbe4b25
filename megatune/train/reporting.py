"""Where the records of a run go: metrics.jsonl first, then the trackers and the screen. First rank only."""

from collections.abc import Callable
from contextlib import ExitStack

from megatune.config import Run
from megatune.launch.ranks import rank_log
from megatune.launch.run_folder import RunFolder
from megatune.report.metrics import MetricsWriter
from megatune.report.progress import Progress
from megatune.report.records import Record, StepRecord
from megatune.report.tensorboard import TensorBoardSink


class Reporter:
    """Writes the records of one start of a run. On all ranks but the first it does nothing."""

    def __init__(self, run: Run, folder: RunFolder, total_steps: int, *, active: bool) -> None:
        self._closing = ExitStack()
        self._sinks: list[Callable[[Record], None]] = []
        self._progress: Progress | None = None
        self._logging_steps = run.train.logging_steps
        self._total_steps = total_steps
        if not active:
            return
        self.metrics = MetricsWriter(folder.metrics)
        self._closing.callback(self.metrics.close)
        self._sinks.append(self.metrics.write)
        if "tensorboard" in run.report_to:
            sink = TensorBoardSink(folder.tensorboard)
            self._closing.callback(sink.close)
            self._sinks.append(sink.write)
        log_path = rank_log()
        log = self._closing.enter_context(log_path.open("a", encoding="utf-8")) if log_path else None
        self._progress = self._closing.enter_context(Progress(total_steps, log=log))

    def cut_back(self, step: int) -> None:
        """Forget what was written after `step`: the run goes on from there."""
        if self._progress is not None:
            self.metrics.cut_back(step)

    def write(self, record: Record) -> None:
        """Keep one record and show it."""
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
