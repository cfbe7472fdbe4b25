"""The log file of each rank, and what it says about a failure."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

_READ_BYTES = 256 * 1024  # of the end of a log
_MAX_LINES = 60
_LINES_WITHOUT_TRACEBACK = 20
_START_OF_FAILURE = re.compile(r"Traceback \(most recent call last\):|^Fatal Python error: ", re.MULTILINE)
_CHAINED = ("direct cause of the following exception", "another exception occurred:")
# What a healthy rank says when a peer has died: the cause is in the peer's log.
_LOST_PEER = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|ncclRemoteError|NCCL remote|"
    r"remote process exited|socket timeout|timed out waiting|wait timeout|watchdog caught",
    re.IGNORECASE,
)
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_CONTROL_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def log_path(log_dir: Path, rank: int) -> Path:
    """`logs/rank-00003.log` for rank 3."""
    return log_dir / f"rank-{rank:05d}.log"


def open_log(path: Path, title: str) -> tuple[int, int]:
    """Open a rank's log for appending and write a header line with the time and `title`.

    Returns the file descriptor and the byte at which this start's own lines begin.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.write(handle, f"{header(title)}\n".encode())
    return handle, os.fstat(handle).st_size


def note_end(path: Path, *, rank: int, code: int) -> None:
    """Write below a failed rank's output how it ended: a killed program cannot say it itself."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    handle, _ = open_log(path, f"rank {rank} ended: {how}")
    os.close(handle)


def header(title: str) -> str:
    """The line that tells a start from the ones before it in the same log."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"=== {now} {title} ==="


def read_log(path: Path, start: int) -> str:
    """The log from byte `start` on, at most its last 256 KiB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _READ_BYTES))
        return file.read().decode("utf-8", errors="replace")


def failure_tail(text: str) -> str:
    """The part of a log that explains why it ends: from the last traceback on, at most 60 lines.

    Tracebacks that Python chains ("direct cause of ...") count as one. Without a traceback, the
    last 20 lines.
    """
    starts = [text.rfind("\n", 0, match.start()) + 1 for match in _START_OF_FAILURE.finditer(text)]
    if not starts:
        return "\n".join(text.rstrip().splitlines()[-_LINES_WITHOUT_TRACEBACK:])
    first = len(starts) - 1
    while first > 0 and any(words in text[starts[first - 1] : starts[first]] for words in _CHAINED):
        first -= 1
    lines = text[starts[first] :].rstrip().splitlines()
    if len(lines) > _MAX_LINES:
        left_out = len(lines) - _MAX_LINES
        lines = [*lines[:10], f"... {left_out} lines left out ...", *lines[10 + left_out :]]
    return "\n".join(lines)


def user_message(text: str) -> str:
    """What a rank told the user before it ended with exit code 2: from its last `megatune:` line on."""
    start = max(text.rfind("\nmegatune: ") + 1, 0)
    return text[start:].rstrip() if text.startswith("megatune: ", start) else failure_tail(text)


def lost_a_peer(tail: str) -> bool:
    """Whether a rank failed only because another one was gone."""
    return _LOST_PEER.search(tail) is not None


def has_failure(text: str) -> bool:
    """Whether a log tells how its program failed: a traceback, a fault, or a message of ours."""
    return _START_OF_FAILURE.search(text) is not None or "\nmegatune: " in f"\n{text}"


def port_was_taken(tail: str, port: int) -> bool:
    """Whether a rank failed because `port` was taken by another program."""
    return any(_PORT_TAKEN.search(line) and re.search(rf"\b{port}\b", line) for line in tail.splitlines())


class LineCleaner:
    """Turns what a program draws on a terminal into lines for a file.

    Colours and cursor movements go; of a line redrawn with carriage returns (a progress bar) only
    its last state stays.
    """

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """The complete lines that `data` finishes."""
        *lines, rest = (self._pending + data).split(b"\n")
        before, redraw, after = rest.rpartition(b"\r")
        # A redrawn line without its end would grow for hours; but a lone final \r may precede a \n.
        self._pending = after if redraw and after else before + redraw + after
        return b"".join(self._clean(line) for line in lines)

    def finish(self) -> bytes:
        """The last line when the program ended without finishing it."""
        rest, self._pending = self._pending, b""
        return self._clean(rest) if rest else b""

    @staticmethod
    def _clean(line: bytes) -> bytes:
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]
        plain = _CONTROL_SEQUENCE.sub(b"", shown)
        return b"" if line and not plain.strip() else plain + b"\n"
