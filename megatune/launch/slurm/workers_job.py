"""A search or a tune as a Slurm job: one worker, or an array of workers that share a journal."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatune.config import LoadedRun, path_override
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.processes import module_command
from megatune.launch.slurm import text
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.request import JobRequest, RunToSubmit, build_request
from megatune.launch.slurm.script import directives, python_command, srun_arguments, template
from megatune.launch.slurm.site import find_site, load_site
from megatune.launch.slurm.submit import HandedIn, hand_in

_TEMPLATE = "workers.sbatch.j2"
_MAX_WORKERS = 1000  # MaxArraySize, Slurm's default, is one more


@dataclass(frozen=True)
class WorkersJob:
    """What the workers of one folder are."""

    command: str
    """`search`, `tune` or `bench`: the command that a worker runs with --worker."""
    folder: Path
    """With the workers' run.yaml."""
    spans_nodes: bool
    """The worker runs in the batch script and gives each trial all nodes by srun; else it is one task on one node,
    which starts local ranks."""
    argument: str = "run.yaml"
    """The file in `folder` that the worker is given."""

    @property
    def script(self) -> Path:
        """The script that sbatch is given."""
        return self.folder / "workers.sbatch"

    @property
    def logs(self) -> Path:
        """One file for each task of the array of workers."""
        return self.folder / "logs"


def request_of(loaded: LoadedRun, folder: Path, run_file: Path) -> JobRequest:
    """What a job of the run asks for, with its site. Raises ConfigError with every problem at once."""
    slurm = loaded.run.slurm
    site = load_site(slurm.site, run_file=run_file) if slurm is not None and slurm.site else None
    run = RunToSubmit(loaded=loaded, folder=folder)
    return build_request(run, site, python=sys.executable, working_dir=Path.cwd())


def site_by_path(loaded: LoadedRun, run_file: Path) -> list[str]:
    """The site profile of a run by its full path, as an override: workers look from another folder."""
    slurm = loaded.run.slurm
    if slurm is None or slurm.site is None:
        return []
    return [path_override("slurm.site", find_site(slurm.site, run_file=run_file).absolute())]


def build_workers_request(loaded: LoadedRun, job: WorkersJob, run_file: Path, num_workers: int) -> JobRequest:
    """What each worker asks for. Raises ConfigError with every problem at once."""
    slurm = loaded.run.slurm
    problems: list[str] = []
    if not 1 <= num_workers <= _MAX_WORKERS:
        problems.append(f"--slurm is {num_workers}; it must be from 1 to {_MAX_WORKERS} workers.")
    if slurm is not None and slurm.nodes > 1 and not job.spans_nodes:
        problems.append(
            f"slurm.nodes = {slurm.nodes}, but a worker of a search trains on one node; use slurm.nodes=1 and more "
            "workers."
        )
    try:
        request = request_of(loaded, job.folder, run_file)
    except ConfigError as error:
        problems += error.problems
    else:
        if job.spans_nodes and request.container is not None and request.container.runtime != "pyxis":
            problems.append(
                "the site profile's container has no srun inside, which the trials are started with; use "
                "slurm.container=none, or tune inside the container on one node."
            )
    if problems:
        raise ConfigError(problems, source=f"megatune {job.command}")
    throttle = "" if request.array_parallelism is None else f"%{request.array_parallelism}"
    array = ("array", f"0-{num_workers - 1}{throttle}")
    return replace(request, additional=(*request.additional, array))


def render_workers(request: JobRequest, job: WorkersJob) -> str:
    """The batch script. What `request` holds has been checked; here it is quoted."""
    variable, below = text.scratch_parts(request.scratch)
    python = [request.python] if job.spans_nodes else python_command(request)
    return template(_TEMPLATE).render(
        name=job.command,
        # Nobody here looks for lost nodes, as the script of a run does: Slurm itself queues the job again.
        directives=[line for line in directives(request) if line != "--no-kill"],
        requeue=request.requeue,
        module_purge=request.module_purge,
        modules=request.modules,
        source=request.source,
        environment=request.environment,
        interface=request.interface,
        cpus_per_task=request.cpus_per_task,
        spans_nodes=job.spans_nodes,
        step_cpus=request.cpus_per_task * request.tasks_per_node,
        step_arguments=[*_all_gpus(request), *srun_arguments(request)],
        scratch_variable=variable,
        scratch_below=below,
        command=module_command(
            "megatune", job.command, str(job.folder / job.argument), "--worker", python=python
        ),
    )


def submit_workers(request: JobRequest, job: WorkersJob, call: Call) -> HandedIn:
    """Write the script and hand it in. Raises SubmitError when Slurm refuses it."""
    job.logs.mkdir(parents=True, exist_ok=True)
    write_text_atomic(job.script, render_workers(request, job))
    return hand_in(job.script, call=call)


def trial_step(request: JobRequest, name: str, logs: Path) -> Sequence[str]:
    """srun and its options, in front of `megatune train`: a trial on all nodes of the allocation of `request`."""
    nodes, tasks = request.nodes, request.tasks_per_node
    return [
        "srun",
        "--kill-on-bad-exit=1",
        "--wait=60",
        f"--job-name={name}",
        f"--nodes={nodes}",
        f"--ntasks={nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={request.cpus_per_task}",
        "--distribution=block",
        "--input=none",
        "--open-mode=append",
        f"--output={str(logs).replace('%', '%%')}/rank-%5t.log",
        *srun_arguments(request),
    ]


def _all_gpus(request: JobRequest) -> list[str]:
    """The worker is one task: where each task has a GPU, it must be given all of them."""
    gpus = request.gpus
    if gpus is None or gpus.request != "gpus-per-task":
        return []
    kind = f"{gpus.type}:" if gpus.type else ""
    return [f"--gpus-per-task={kind}{gpus.per_node}"]
