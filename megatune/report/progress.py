"""What a run shows while it trains: a bar on a terminal, plain lines anywhere else."""

import statistics
import sys
from collections import deque
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from megatune.report.records import StepRecord
from megatune.units import format_bytes, format_ratio

_STEPS_FOR_ETA = 50  # the first steps compile and warm up; the last ones tell the speed
_BAR_WIDTH_MIN = 12  # with the blanks around it


class Progress:
    """Shows each step of a run of `total_steps` optimizer steps.

    On a terminal: one bar, redrawn; on a pipe, a file or a dumb terminal: one plain line a step.
    `stream`: where to show it, standard output by default. `log`: a file that gets the plain lines
    as well, for the case that `stream` is a terminal and the log would have none.
    """

    def __init__(self, total_steps: int, *, stream: TextIO | None = None, log: TextIO | None = None) -> None:
        self._total = total_steps
        self._stream = stream or sys.stdout
        self._log = log
        self._recent: deque[float] = deque(maxlen=_STEPS_FOR_ETA)
        self._bar = _make_bar(self._stream)
        self._task = self._bar.add_task("train", total=total_steps, text="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, record: StepRecord) -> None:
        """Show one step."""
        self._recent.append(record.step_seconds)
        eta_s = (self._total - record.step) * statistics.median(self._recent)
        line = step_line(record, self._total, eta_s)
        if self._bar and self._task is not None:
            room = self._bar.console.width - len(f"{record.step}/{self._total}") - _BAR_WIDTH_MIN
            self._bar.update(self._task, completed=record.step, text=_bar_text(record, eta_s, room))
        else:
            print(line, file=self._stream, flush=True)
        self._write_log(line)

    def note(self, text: str) -> None:
        """Show a line of its own, above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)
        self._write_log(text)

    def _write_log(self, line: str) -> None:
        if self._log is not None:
            print(line, file=self._log, flush=True)


def step_line(record: StepRecord, total_steps: int, eta_s: float | None) -> str:
    """One step as a line that is easy to grep: `step 12/100 loss 2.3456 grad_norm 1.234 ...`."""
    norm = "n/a" if record.grad_norm is None else f"{record.grad_norm:.3f}"
    line = (
        f"step {record.step}/{total_steps} loss {_loss(record)} grad_norm {norm} "
        f"lr {record.learning_rate:.2e} tok/s {record.tokens_per_second:.0f} "
        f"tok/s/dev {record.tokens_per_second_per_device:.0f} MFU {format_ratio(record.mfu)} "
        f"mem {format_bytes(record.peak_memory_bytes)} eta {format_eta(eta_s)}"
    )
    return f"{line} skipped" if record.skipped else line


def format_eta(seconds: float | None) -> str:
    """Seconds as h:mm:ss.

    >>> format_eta(192)
    '0:03:12'
    """
    if seconds is None:
        return "n/a"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _loss(record: StepRecord) -> str:
    return "n/a" if record.loss is None else f"{record.loss:.4f}"


def _make_bar(stream: TextIO) -> RichProgress | None:
    console = Console(file=stream)  # knows NO_COLOR, TERM=dumb and the terminal's width
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return RichProgress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[text]}"),
        console=console,
        expand=True,
    )


def _bar_text(record: StepRecord, eta_s: float | None, width: int) -> str:
    """What stands to the right of the bar: the most important first to stay on a narrow terminal."""
    by_importance = {
        "loss": f"loss {_loss(record)}",
        "eta": f"eta {format_eta(eta_s)}",
        "speed": f"tok/s {record.tokens_per_second:.0f}",
        "memory": f"mem {format_bytes(record.peak_memory_bytes)}",
        "mfu": f"MFU {format_ratio(record.mfu)}",
        "rate": f"lr {record.learning_rate:.2e}",
    }
    shown: dict[str, str] = {"skipped": "skipped"} if record.skipped else {}
    for name, text in by_importance.items():
        if sum(len(part) + 1 for part in shown.values()) + len(text) <= width:
            shown[name] = text
    return " ".join(
        shown[name] for name in ("loss", "rate", "speed", "mfu", "memory", "eta", "skipped") if name in shown
    )
