"""Lines that show why a job failed, quoted without secrets."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatune.launch.digest.logs import Line, Log

_SHOWN_CHARS = 300
_REDACTED = "[redacted]"
_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\b(?:gh[pousr]_|github_pat_|sk-|glpat-|xox[abp]-)[\w\-]{16,}"),
    re.compile(r"\beyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*"),
    re.compile(r"(?i)(?<=\bbearer )\S+|(?<=\bbasic )[A-Za-z0-9+/=]{8,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)
_SECRET_NAME = r"[\w\-]*(?:token|secret|passw(?:or)?d|api[_\-]?key|access[_\-]?key|credential)[\w\-]*"
# NAME=value and "name": "value"; and an option with its value behind a blank.
_NAMED_SECRET = re.compile(
    rf"(?i)({_SECRET_NAME}[\"']?\s*[=:]\s*|--{_SECRET_NAME}\s+)([\"']?)([^\s\"',;]{{6,}})"
)
_AUTHORIZATION = re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*).*")
_PLAIN_WORD = re.compile(r"[A-Za-z_.()\-]{1,40}")
_COUNT = re.compile(r"[\d.,]{1,15}")

_SLURM_TIME = re.compile(r"\bAT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\b")
_GLOG_TIME = re.compile(r"\[[EWF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)")
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(Z)?")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One line of a log. `line` counts from 1; None for what Slurm said itself."""

    file: str
    line: int | None
    text: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.text}"

    def as_object(self) -> dict[str, str | int | None]:
        """For `--json`."""
        return {"file": self.file, "line": self.line, "text": self.text}


def quote(line: Line, log: Log, run_folder: Path) -> Evidence:
    """`line` of `log` as evidence: its file relative to the run folder, no secret, not too long."""
    path = log.path.relative_to(run_folder) if log.path.is_relative_to(run_folder) else log.path
    return Evidence(file=str(path), line=line.number, text=shown(line.text))


def shown(text: str) -> str:
    """`text` for a report: redacted, without control characters, at most 300 characters."""
    clean = "".join(char if char.isprintable() else " " for char in redact(text)).strip()
    return clean if len(clean) <= _SHOWN_CHARS else f"{clean[:_SHOWN_CHARS]}..."


def redact(text: str) -> str:
    """`text` without what looks like a token, a password or a key.

    >>> redact("HF_TOKEN=abcdef123456 python train.py")
    'HF_TOKEN=[redacted] python train.py'
    """
    text = _AUTHORIZATION.sub(rf"\g<1>{_REDACTED}", text)
    for pattern in _SECRETS:
        text = pattern.sub(_REDACTED, text)
    return _NAMED_SECRET.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    name, mark, value = match.groups()
    # `tokens: 134515008` and `token ids: missing` are no secrets; a word behind an equals sign may be one.
    is_prose = ":" in name and not mark and _PLAIN_WORD.fullmatch(value)
    return match[0] if is_prose or _COUNT.fullmatch(value) else f"{name}{mark}{_REDACTED}"


def time_of(line: Line, written_at: datetime) -> datetime | None:
    """The time that a line gives for itself, in UTC; None when it gives none.

    Slurm and torch print this machine's local time; torch leaves out the year, which is `written_at`'s.
    """
    if match := _SLURM_TIME.search(line.text):
        return _parsed(match[1])
    if match := _GLOG_TIME.search(line.text):
        month, day, hour, minute, second = match.groups()
        return _parsed(f"{written_at.year}-{month}-{day}T{hour}:{minute}:{second}")
    if match := _ISO_TIME.search(line.text):
        return _parsed(f"{match[1]}T{match[2]}{'+00:00' if match[3] else ''}")
    return None


def _parsed(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
