"""Runs on the lab, driven by the real command line and judged by Slurm's own programs and the run's files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import CONTROLLER, Lab
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run

ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
}


class Cluster:
    """The lab as one test sees it."""

    def __init__(self, lab: Lab, folder: Path, session_folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.model = write_model_with_tokenizer(session_folder / "cluster-model")
        self._environment = {"MEGATUNE_CACHE": str(folder / "cache")}

    def run_file(self, name: str = "run", **changes: Any) -> Path:
        """A run at dp=2 x tp=2 over 2 nodes with 2 CPU ranks each; `changes` are sections' entries."""
        slurm = {
            "nodes": 2,
            "gpus_per_node": 0,
            "cpus_per_task": 1,
            "mem": "5000M",
            "time": 20,
            "signal_delay_s": 30,
        }
        slurm |= changes.pop("slurm", {})
        launch = {"nproc_per_node": 2, **changes.pop("launch", {})}
        train = {"max_steps": 6, **changes.pop("train", {})}
        (self.folder / name).mkdir(exist_ok=True)
        return write_run(
            self.folder / name / "run.yaml", self.model, slurm=slurm, launch=launch, train=train, **changes
        )

    def megatune(
        self, *arguments: object, host: str = CONTROLLER, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The command line on a host of the lab."""
        command = [sys.executable, "-m", "megatune", *arguments]
        return self.lab.run(
            host, command, cwd=self.folder, check=check, timeout_s=timeout_s, environment=self._environment
        )

    def submit(self, run_file: Path, *arguments: str) -> str:
        """Submit a run; gives its job id."""
        answer = json.loads(self.megatune("submit", run_file, *arguments, "--json").stdout)
        return str(answer["jobs"][0]["job_id"])

    def slurm(self, *command: object, check: bool = True) -> str:
        """The standard output of one of Slurm's programs on the login node."""
        return self.lab.run(CONTROLLER, command, check=check).stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job as Slurm sees it now."""
        shown = self.slurm("scontrol", "show", "job", "-o", job, check=False)
        return shown.partition("JobState=")[2].split(" ", 1)[0] or "UNKNOWN"

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        return self.slurm("scontrol", "show", "job", "-o", job).partition(f" {name}=")[2].split(" ", 1)[0]

    def wait_until_ended(self, job: str, timeout_s: float = 180) -> str:
        """Wait for the end of a job; gives its final state. A job that was queued again has not ended."""
        self.lab.wait(f"end of job {job}", lambda: self.state(job) in ENDED, timeout_s=timeout_s)
        return self.state(job)

    def wait_for_step(self, output_dir: Path, step: int, timeout_s: float = 240) -> None:
        """Wait until a run has taken `step` steps."""
        self.wait(f"step {step} of {output_dir}", lambda: steps_taken(output_dir) >= step, timeout_s)

    def wait(self, what: str, done: Callable[[], object], timeout_s: float = 60) -> None:
        self.lab.wait(what, done, timeout_s=timeout_s)

    def clear(self) -> None:
        """Cancel whatever is queued or runs, and wait until all nodes are free again."""
        self.slurm("scancel", "--user=root", check=False)
        for node in self.lab.nodes:
            self.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.lab.wait("an empty queue", lambda: not self.slurm("squeue", "-h", "-o", "%i"), timeout_s=60)


def steps_taken(output_dir: Path) -> int:
    """The newest step in the metrics of a run; 0 before there are any."""
    if not (output_dir / "metrics.jsonl").exists():
        return 0
    return max((entry["step"] for entry in metrics_of(output_dir, "step")), default=0)


def losses(output_dir: Path) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in metrics_of(output_dir, "step")]


def train_here(run_file: Path, *overrides: str, num_ranks: int = 4) -> Path:
    """The same run with local ranks on this machine; gives its folder."""
    output_dir = run_file.parent / f"here-{num_ranks}"
    arguments = [
        *overrides,
        f"train.output_dir={output_dir}",
        f"launch.nproc_per_node={num_ranks}",
        "slurm=null",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "megatune", "train", str(run_file), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output_dir
