"""The logs of a run's last start, line by line with their numbers."""

import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

_LINES_KEPT = 2000  # of the end of a log: a failure and what led to it
_LINE_CHARS = 2000
_HEADER = re.compile(r"=== (?P<time>\S+Z) (?P<title>.*) ===")
_RANK_TITLE = re.compile(r"rank (?P<rank>\d+) of (?P<of>\d+)(?: on (?P<host>[^\s:]+))?:?.*")
_JOB_TITLE = re.compile(r"job \S+.*")
_END_TITLE = re.compile(r"rank (?P<rank>\d+) ended: (?P<how>signal|exit code) (?P<number>\d+)")
# The batch script's word below a rank's output; a shell adds 128 to the signal that ended the rank.
_CODE_LINE = re.compile(r"megatune: rank \d+ exit code (\d+)")
# The batch script's last word on a start that came to no ranks, with the code it ends with.
_NO_RANKS = re.compile(
    r"megatune: the (?:nodes are not fit|ops could not be compiled|data could not be prepared)"
    r"(?: \(exit code (?P<code>\d+)\))?.*"
)
# torch puts the rank before each line of a traceback that reaches the top.
_TORCH_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Ranks of one start write their headers within this time of each other.
_SAME_START = timedelta(minutes=10)


@dataclass(frozen=True)
class Line:
    """A line of a log; numbers count from 1."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """What the last start has written into one file, at most its last 2000 lines."""

    path: Path
    lines: tuple[Line, ...]
    started_at: datetime | None = None
    """From the header that the start begins with; None without one."""
    written_at: datetime
    """When the file was last written to."""
    rank: int | None = None
    """None for a job's own log."""
    num_ranks: int | None = None
    host: str | None = None
    code: int | None = None
    """How the rank ended, where its launcher has noted it; negative for a signal."""

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line.text for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class StartLogs:
    """The logs of one start."""

    ranks: tuple[Log, ...]
    job: Log | None
    began: bool = True
    """Whether it came to ranks: what the job does before may fail."""
    code: int | None = None
    """What the job ended with where it did not."""

    @property
    def num_ranks(self) -> int | None:
        """How many ranks there were; None when no header says it and no log is there."""
        told = max((log.num_ranks for log in self.ranks if log.num_ranks), default=None)
        return told or len(self.ranks) or None


def read_last_start(folder: Path, job_id: str | None = None) -> StartLogs:
    """The logs in `folder` of the last start: of all ranks it had, and of job `job_id`."""
    job_path = folder / f"job-{job_id}.log"
    job = read_log(job_path) if job_id is not None and job_path.is_file() else None
    failed = next(filter(None, (_NO_RANKS.fullmatch(line.text) for line in job.lines)), None) if job else None
    if failed is not None:
        code = failed["code"]
        return StartLogs(ranks=(), job=job, began=False, code=None if code is None else int(code))
    ranks = [read_log(path) for path in sorted(folder.glob("rank-*.log"))]
    return StartLogs(ranks=tuple(_of_last_start(ranks, job)), job=job)


def read_log(path: Path) -> Log:
    """What the last start has written into `path`: all after its last header."""
    lines: deque[Line] = deque(maxlen=_LINES_KEPT)
    started_at: datetime | None = None
    title: re.Match[str] | None = None
    code: int | None = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            text = _clean(raw)
            header = _HEADER.fullmatch(text)
            ending = _END_TITLE.fullmatch(header["title"]) if header else None
            if ending:
                code = -int(ending["number"]) if ending["how"] == "signal" else int(ending["number"])
            elif told := _CODE_LINE.fullmatch(text):
                code = signal_or_code(int(told[1]))
            elif header and _is_start(header["title"]):
                title, started_at = _RANK_TITLE.fullmatch(header["title"]), _time(header["time"])
                code = None
                lines.clear()
            else:
                lines.append(Line(number, text))
        written_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    in_name = re.fullmatch(r"rank-(\d+)\.log", path.name)
    return Log(
        path=path,
        lines=tuple(lines),
        started_at=started_at,
        written_at=written_at,
        rank=int(in_name[1]) if in_name else None,
        num_ranks=int(title["of"]) if title else None,
        host=title["host"] if title else None,
        code=code,
    )


def signal_or_code(code: int) -> int:
    """An exit code, or a negative signal where a shell has said it as 128 and more.

    >>> signal_or_code(137)
    -9
    """
    return 128 - code if 128 < code < 128 + 65 else code


def _of_last_start(ranks: list[Log], job: Log | None) -> list[Log]:
    """Those of `ranks` that the last start had: an earlier one may have had more, or have got further."""
    newest = max((log.started_at for log in ranks if log.started_at), default=None)
    if newest is None:
        return ranks
    sizes = [log.num_ranks for log in ranks if log.started_at == newest and log.num_ranks]
    size = sizes[0] if sizes else len(ranks)
    first = job.started_at if job and job.started_at and job.started_at <= newest else newest - _SAME_START
    return [
        log
        for log in ranks
        if (log.rank is None or log.rank < size) and (log.started_at is None or log.started_at >= first)
    ]


def _is_start(title: str) -> bool:
    return bool(_RANK_TITLE.fullmatch(title) or _JOB_TITLE.fullmatch(title))


def _clean(raw: bytes) -> str:
    text = raw[:_LINE_CHARS].decode("utf-8", errors="replace").rstrip("\r\n")
    # Of a line redrawn with carriage returns (a progress bar) only the last state counts.
    return _TORCH_PREFIX.sub("", _ESCAPE.sub("", text.rpartition("\r")[2]))


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
