"""Run folders with planted logs, in the shapes that the programs really print."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from megatune.launch.digest import Digest, digest_run
from megatune.launch.run_folder import RunFolder

START = "2026-11-23T10:00:00Z"
EARLIER = "2026-11-23T08:00:00Z"
TRACEBACK = "Traceback (most recent call last):\n"
IN_LIBRARY = (
    '  File "/opt/venv/lib/python3.12/site-packages/torch/nn/modules/module.py", line 1775, in _wrapped_call_impl\n'
    "    return self._call_impl(*args, **kwargs)\n"
)
IN_MEGATUNE = (
    '  File "/opt/megatune/megatune/train/step.py", line 48, in train_step\n    logits = forward()\n'
)
STEPS = "step 11/100 loss 2.31\nstep 12/100 loss 2.30\n"


def traceback(last: str, frames: str = IN_MEGATUNE + IN_LIBRARY) -> str:
    return f"{TRACEBACK}{frames}{last}\n"


GLOO_PEER = traceback(
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
    "[10.77.0.2]:41234"
)
NCCL_PEER = (
    "[rank1]:[E1123 10:41:12.123456789 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation "
    "timeout: WorkNCCL(SeqNum=88, OpType=_ALLGATHER_BASE, NumelIn=4096, NumelOut=32768, Timeout(ms)=600000) ran for "
    "600021 milliseconds before timing out.\n"
    "[rank1]:[E1123 10:41:13.000000000 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0(default_pg) Rank 1] Process "
    "group watchdog thread terminated with exception: [Rank 1] Watchdog caught collective operation timeout\n"
    "Fatal Python error: Aborted\n"
)
STEP_CANCELLED = (
    "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-23T10:30:05 ***\n"
    "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n"
)


@dataclass
class Planted:
    """A run folder: rank -> what it printed, and what the job's own log holds."""

    folder: Path
    ranks: dict[int, str] = field(default_factory=dict)
    job: str | None = None
    job_id: str = "7"

    def digest(self, state: str | None = None, reason: str | None = None) -> Digest:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        for rank, text in self.ranks.items():
            header = f"=== {START} rank {rank} of {len(self.ranks)} on n{1 + rank // 2}: megatune train ===\n"
            with (logs / f"rank-{rank:05d}.log").open("a") as file:
                file.write(header + text)
        if self.job is not None:
            (logs / f"job-{self.job_id}.log").write_text(
                f"=== {START} job {self.job_id} restart 0 on n1,n2 ===\n{self.job}"
            )
        job_id = self.job_id if self.job is not None or state is not None else None
        return digest_run(RunFolder(self.folder), job_id=job_id, state=state, reason=reason)

    def earlier(self, rank: int, text: str, *, num_ranks: int = 4) -> None:
        """What an earlier start has left in a rank's log."""
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / f"logs/rank-{rank:05d}.log").open("a") as file:
            file.write(f"=== {EARLIER} rank {rank} of {num_ranks}: megatune train ===\n{text}")

    def metrics(self, *entries: dict[str, object]) -> None:
        lines = (json.dumps({"schema": 1, "time": START, **entry}) + "\n" for entry in entries)
        (self.folder / "metrics.jsonl").write_text("".join(lines))
