"""Where trials run: on this machine, or as steps of srun on all nodes of an allocation."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatune.config import LoadedRun
from megatune.errors import ConfigError
from megatune.launch.devices import count_cpus, count_gpus, gpu_names, host_memory_bytes
from megatune.launch.measurements import measured_for
from megatune.launch.ranks import in_allocation_shell, own_slurm_job
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.preview import machine_of
from megatune.launch.slurm.request import JobRequest
from megatune.launch.slurm.script import python_command
from megatune.plan.hardware import Accelerator, accelerator_named, find_accelerator
from megatune.plan.question import Machine
from megatune.tune.workers_job import request_of, trial_step


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
    """Where the trials of this process run. Raises ConfigError outside the job they are to be steps of."""
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


def machine_here(loaded: LoadedRun, gpu: str | None) -> Machine:
    """This machine, with as many ranks as `megatune train` would start on it. Raises PlanError for an unknown --gpu."""
    run, gpus = loaded.run, count_gpus()
    asked, degree = run.launch.nproc_per_node, run.parallel.tp_size
    one_a_core = max(1, count_cpus() // degree) * degree
    accelerator = _accelerator(gpu, gpus)
    device = accelerator.name if accelerator else None if gpus else "cpu"
    return Machine(
        nodes=1,
        ranks_per_node=(gpus or one_a_core) if asked == "auto" else asked,
        accelerator=accelerator,
        host_memory_bytes=host_memory_bytes(),
        measured=measured_for(run, device=device),
        on_cpu=not gpus,
        needs_limit=False,
    )


def machine_in_job(loaded: LoadedRun, folder: Path, run_file: Path) -> Machine:
    """The nodes of the run's job. Raises ConfigError for a job that cannot be."""
    request = request_of(loaded, folder, run_file)
    gpus = request.gpus
    device = "cpu" if gpus is None else gpus.name
    return machine_of(request, measured_for(loaded.run, device=device))


def _accelerator(asked: str | None, num_gpus: int) -> Accelerator | None:
    if asked is not None:
        return None if asked == "cpu" else accelerator_named(asked)
    names = gpu_names() if num_gpus else []
    return find_accelerator(names[0]) if names else None
