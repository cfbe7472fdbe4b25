"""metrics.jsonl: the one record of a run that every tracker, table and picture is drawn from."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from megatune.errors import MegatuneError
from megatune.files import write_text_atomic
from megatune.report.goodput import time_taken
from megatune.report.records import LostRecord, Record, to_line

WARMUP_STEPS = 2
"""Of each start, where nobody says how many: kernels are chosen, buffers made, files read."""
_SYNC_EVERY_S = 5.0
_CURVE_EVENTS = ("step", "eval", "save")


class MetricsWriter:
    """Appends records to `path`. One process writes a run's file; anybody may read it meanwhile.

    A line is complete in the file as soon as `write` returns, and on the disk within 5 seconds of
    writing or at `close`. A last line that a killed run has left unfinished is taken away first.
    Raises OSError naming the file when it cannot be written, for instance when no space is left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open_after_last_line(path)
        self._synced_at = time.monotonic()

    def write(self, record: Record) -> None:
        """Append one record."""
        line = to_line(record).encode()
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
                self._sync()
        except OSError as error:
            os.ftruncate(self._file, size)  # half a line would spoil the next one
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(self.path)) from error

    def cut_back(self, step: int, *, keep_evaluation: bool = True) -> LostRecord | None:
        """Take away all steps, evaluations and saves after `step`, so that curves never double back.

        The lines about starts, resumes, faults and stops stay: they happened. The file is replaced in one
        stroke. `keep_evaluation` False takes away evaluations at `step` itself, too: they will be made again.
        Returns what was lost by it, to be written; None when no step of a run that goes on was.
        """
        kept: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        for entry in read_metrics(self.path):
            is_again = not keep_evaluation and (entry["event"], entry.get("step")) == ("eval", step)
            (gone if is_again or _is_beyond(entry, step) else kept).append(entry)
        lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in kept)
        write_text_atomic(self.path, "".join(lines))
        os.close(self._file)
        self._file = _open_after_last_line(self.path)
        return _lost(gone, step) if gone and step >= 0 else None

    def close(self) -> None:
        """Make everything durable and give up the file."""
        self._sync()
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced_at = time.monotonic()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file in order. An unfinished last line is left out.

    Raises MegatuneError with the line's number when another line is no JSON object.
    """
    *lines, _unfinished = path.read_bytes().split(b"\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]


def settled_steps(
    entries: Sequence[Mapping[str, Any]], warmup_steps: int = WARMUP_STEPS
) -> list[Mapping[str, Any]]:
    """The lines of the steps that tell how long a step takes: those behind the first `warmup_steps` of each start."""
    found: list[Mapping[str, Any]] = []
    since_start = 0
    for entry in entries:
        if entry["event"] == "run":
            since_start = 0
        elif entry["event"] == "step":
            since_start += 1
            if since_start > warmup_steps:
                found.append(entry)
    return found


def _open_after_last_line(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    # A crash of the machine can leave zeros or half a line after the last newline.
    with open(handle, "rb", closefd=False) as file:
        content = file.read()
    os.ftruncate(handle, content.rfind(b"\n") + 1)
    return handle


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise MegatuneError(
            f"{path}, line {number} is not JSON ({error}). Delete this line; nothing else depends on it."
        ) from error
    if not isinstance(entry, dict):
        raise MegatuneError(f"{path}, line {number} is not a JSON object. Delete this line.")
    return entry


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _lost(gone: list[dict[str, Any]], step: int) -> LostRecord:
    return LostRecord(
        step=step,
        steps=sum(entry["event"] == "step" for entry in gone),
        seconds=sum(map(time_taken, gone), 0.0),
        until=gone[-1].get("time"),
    )


def _is_beyond(entry: dict[str, Any], step: int) -> bool:
    return entry.get("event") in _CURVE_EVENTS and entry.get("step", 0) > step
