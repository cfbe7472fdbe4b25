"""TensorBoard event files, written by TensorBoard's own writer: neither torch nor TensorFlow is needed."""

import time
from pathlib import Path
from typing import Any

from megatune.report.records import EvalRecord, Record, ResumeRecord, StepRecord

_STEP_TAGS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "epoch": "train/epoch",
    "tokens_per_second": "speed/tokens_per_second",
    "tokens_per_second_per_device": "speed/tokens_per_second_per_device",
    "step_seconds": "speed/step_seconds",
    "mfu": "speed/mfu",
    "mfu_causal": "speed/mfu_causal",
    "hfu": "speed/hfu",
    "peak_memory_bytes": "memory/peak_bytes",
}


class TensorBoardSink:
    """Writes the numbers of step and evaluation records below `folder`; unknown ones are left out.

    A resume record tells TensorBoard to drop what an earlier start has drawn after its step.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here: `megatune --help` must not pay for it.
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
            EventFileWriter,
        )

        self._event = event_pb2
        self._summary = summary_pb2
        self._writer: Any = EventFileWriter(str(folder), flush_secs=10)

    def write(self, record: Record) -> None:
        """Draw one record; those without a curve are passed over."""
        if isinstance(record, ResumeRecord):
            self._drop_after(record.step)
            return
        scalars = scalars_of(record)
        if isinstance(record, StepRecord | EvalRecord) and scalars:
            values = [
                self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
            ]
            self._add(step=record.step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        """Write out everything."""
        self._writer.close()

    def _drop_after(self, step: int) -> None:
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def _add(self, **content: Any) -> None:
        self._writer.add_event(self._event.Event(wall_time=time.time(), **content))


def scalars_of(record: Record) -> dict[str, float]:
    """The curves that a record has a point on: tag -> value."""
    if isinstance(record, StepRecord):
        values = {tag: getattr(record, name) for name, tag in _STEP_TAGS.items()}
        return {tag: float(value) for tag, value in values.items() if value is not None}
    if isinstance(record, EvalRecord):
        values = {
            f"eval/{record.split}_loss": record.loss,
            f"eval/{record.split}_perplexity": record.perplexity,
            **{f"eval/{record.split}_{name}": value for name, value in record.metrics.items()},
        }
        return {tag: value for tag, value in values.items() if value is not None}
    return {}
