"""Run folders with metrics and jobs, and a Slurm that answers about them."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "launch/slurm"))

from fake_slurm import FakeSlurm, account_line, queue_line, said

from megatune.launch.slurm.history import SubmittedJob, remember_job, remember_run

__all__ = [
    "NO_ACCOUNTS",
    "NO_JOB",
    "OOM",
    "RUN",
    "FakeSlurm",
    "account_line",
    "ended",
    "plant",
    "queue_line",
    "running",
    "said",
    "save",
    "step",
]
NO_JOB = said(err="slurm_load_jobs error: Invalid job id specified\n", code=1)
NO_ACCOUNTS = said(err="Slurm accounting storage is disabled\n", code=1)
RUN = {"event": "run", "total_steps": 100, "restart_count": 2}
OOM = (
    "step 12/100 loss 2.5\nTraceback (most recent call last):\n"
    '  File "/v/site-packages/torch/nn/functional.py", line 1, in linear\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)


def step(number: int, seconds: float = 10.0) -> dict[str, object]:
    return {
        "event": "step",
        "step": number,
        "loss": 2.5,
        "tokens_per_second": 1200.0,
        "step_seconds": seconds,
    }


def plant(
    folder: Path, *entries: dict[str, object], job_ids: tuple[str, ...] = ("7",), age_s: float = 30
) -> Path:
    """A run folder with metrics, all of them `age_s` old, and jobs."""
    (folder / "logs").mkdir(parents=True)
    stamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    lines = (json.dumps({"schema": 1, "time": stamp, **entry}) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text("".join(lines))
    for job_id in job_ids:
        remember_job(folder, SubmittedJob(job_id=job_id, cluster=None, submitted_at=stamp))
    if job_ids:
        remember_run(folder)
    return folder


def save(folder: Path, number: int, *, whole: bool = True) -> dict[str, object]:
    path = folder / f"checkpoints/step-{number:08d}"
    path.mkdir(parents=True)
    if whole:
        (path / "manifest.json").write_text("{}")
    return {"event": "save", "step": number, "path": str(path)}


def running(left: str = "1:00:00") -> FakeSlurm:
    return FakeSlurm(
        squeue=said(queue_line("7", "RUNNING", nodes="n[1-2]", num_nodes=2, left=left)),
        sacct=said(account_line("7", "RUNNING", end="Unknown")),
    )


def ended(state: str, code: str = "1:0") -> FakeSlurm:
    return FakeSlurm(squeue=NO_JOB, sacct=said(account_line("7", state, code=code)))
