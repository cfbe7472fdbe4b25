"""Where measured trainings run: as local ranks, or as steps of srun on the nodes of this allocation."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatune.config import LoadedRun
from megatune.errors import ConfigError
from megatune.launch.ranks import in_allocation_shell, own_slurm_job
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.request import JobRequest
from megatune.launch.slurm.script import python_command
from megatune.launch.slurm.workers_job import request_of, trial_step


class Place(Protocol):
    """How a trial is started there."""

    def launcher(self, name: str, logs: Path) -> Sequence[str]:
        """Python, with what stands before it."""

    def overrides(self) -> Sequence[str]:
        """What the place adds to a trial's run file."""

    def end(self, name: str) -> None:
        """Make sure that nothing of the trial is left."""


@dataclass(frozen=True)
class Here:
    """Local ranks, started by `megatune train`; the kernel ends them with it."""

    def launcher(self, name: str, logs: Path) -> Sequence[str]:
        del name, logs
        return [sys.executable]

    def overrides(self) -> Sequence[str]:
        return ()

    def end(self, name: str) -> None:
        del name


@dataclass(frozen=True)
class InAllocation:
    """One step of srun a trial."""

    request: JobRequest
    call: Call = call

    @property
    def num_ranks(self) -> int:
        """Of each trial."""
        return self.request.nodes * self.request.tasks_per_node

    def launcher(self, name: str, logs: Path) -> Sequence[str]:
        return [*trial_step(self.request, name, logs), *python_command(self.request)]

    def overrides(self) -> Sequence[str]:
        return (
            "launch.launcher=slurm",
            f"launch.nodes={self.request.nodes}",
            f"launch.nproc_per_node={self.request.tasks_per_node}",
        )

    def end(self, name: str) -> None:
        """A killed srun leaves its step, and the next one would wait for the nodes."""
        job = own_slurm_job()
        if job is None or job.job_id is None:
            return
        listed = self.call(["squeue", "--noheader", "--steps", f"--jobs={job.job_id}", "--format=%i %j"])
        for line in listed.out.splitlines():
            step, _, step_name = line.strip().partition(" ")
            if step_name.strip() == name:
                self.call(["scancel", step])


def place_of(loaded: LoadedRun, folder: Path, run_file: Path, *, in_job: bool) -> Place:
    """Where the trials of a tune run. Raises ConfigError outside the job they are to be steps of."""
    if not in_job:
        return Here()
    if not in_allocation_shell():
        raise ConfigError(
            [
                "this tune's trials are steps of a Slurm job, and this is not the shell of an allocation. Go on with "
                "--slurm 1, or inside salloc."
            ],
            source="megatune tune",
        )
    return InAllocation(request_of(loaded, folder, run_file))
