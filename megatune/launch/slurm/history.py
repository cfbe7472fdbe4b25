"""The jobs that were handed in for a run: a line each in the run folder, and a list of all runs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatune.errors import MegatuneError
from megatune.launch.ranks import cache_folder


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """One job of a run."""

    job_id: str
    """As squeue takes it: `1234`, or `1234_5` for a task of an array."""
    cluster: str | None
    """The cluster's name where Slurm is federated."""
    submitted_at: str
    """ISO 8601, UTC."""
    time_limit_s: int | None = None
    depends_on: str | None = None
    """The job of a chain that must end before this one starts."""


def remember_job(run_folder: Path, job: SubmittedJob) -> None:
    """Append `job` to the run's jobs. Raises OSError."""
    _append(run_folder / "jobs.jsonl", asdict(job))


def remember_run(run_folder: Path) -> None:
    """Put the run on the list that `megatune status` reads. Raises OSError, or MegatuneError for a broken list."""
    known = _list_of_runs()
    known.parent.mkdir(parents=True, exist_ok=True)
    if run_folder.absolute() not in remembered_runs():
        _append(known, {"run": str(run_folder.absolute())})


def jobs_of(run_folder: Path) -> list[SubmittedJob]:
    """The jobs of a run, in the order in which they were handed in; none for a run that was not submitted.

    Raises MegatuneError, with file and line, where one is broken.
    """
    names = {item.name for item in fields(SubmittedJob)}
    return [
        SubmittedJob(**{"cluster": None, **{key: value for key, value in entry.items() if key in names}})
        for entry in _entries(run_folder / "jobs.jsonl", ("job_id", "submitted_at"))
    ]


def remembered_runs() -> list[Path]:
    """The folders of all runs that this user has submitted and that are still there."""
    folders = dict.fromkeys(Path(entry["run"]) for entry in _entries(_list_of_runs(), ("run",)))
    return [folder for folder in folders if folder.is_dir()]


def _list_of_runs() -> Path:
    return cache_folder() / "submitted.jsonl"


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    # One write call in append mode: two submits at the same time do not mix their lines.
    with path.open("ab+", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        after_torn_line = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(after_torn_line + (json.dumps(entry, ensure_ascii=False) + "\n").encode())


def _entries(path: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of `path`, each an object with `texts` among its keys. An unfinished last line is left out."""
    if not path.exists():
        return []
    found = []
    *lines, _unfinished = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise MegatuneError(f"{path}, line {number} is no JSON: {error}. Delete the line.") from error
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in texts):
            raise MegatuneError(
                f"{path}, line {number} is no object with the text(s) {', '.join(texts)}. Delete the line."
            )
        found.append(entry)
    return found
