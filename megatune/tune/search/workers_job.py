"""A search as a Slurm job: an array of workers that share its journal."""

import shlex
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from megatune.config import LoadedRun
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.slurm import text
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.request import JobRequest, RunToSubmit, build_request
from megatune.launch.slurm.script import directives, python_command, srun_arguments
from megatune.launch.slurm.site import load_site
from megatune.launch.slurm.submit import HandedIn, hand_in
from megatune.tune.search.folder import SearchFolder

_TEMPLATE = "workers.sbatch.j2"
_MAX_WORKERS = 1000  # MaxArraySize, Slurm's default, is one more


def build_workers_request(
    loaded: LoadedRun, folder: SearchFolder, run_file: Path, num_workers: int
) -> JobRequest:
    """What each worker asks for. Raises ConfigError with every problem at once."""
    slurm = loaded.run.slurm
    site = load_site(slurm.site, run_file=run_file) if slurm is not None and slurm.site else None
    problems: list[str] = []
    if not 1 <= num_workers <= _MAX_WORKERS:
        problems.append(f"--slurm is {num_workers}; it must be from 1 to {_MAX_WORKERS} workers.")
    if slurm is not None and slurm.nodes > 1:
        problems.append(
            f"slurm.nodes = {slurm.nodes}, but a worker of a search trains on one node; use slurm.nodes=1 and more "
            "workers."
        )
    try:
        run = RunToSubmit(loaded=loaded, folder=folder.path)
        request = build_request(run, site, python=sys.executable, working_dir=Path.cwd())
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, source="megatune search")
    throttle = "" if request.array_parallelism is None else f"%{request.array_parallelism}"
    array = ("array", f"0-{num_workers - 1}{throttle}")
    return replace(request, additional=(*request.additional, array))


def render_workers(request: JobRequest, folder: SearchFolder) -> str:
    """The batch script. What `request` holds has been checked; here it is quoted."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quote"] = shlex.quote
    template = files("megatune.tune.search").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    variable, below = text.scratch_parts(request.scratch)
    return environment.from_string(template).render(
        directives=directives(request),
        requeue=request.requeue,
        module_purge=request.module_purge,
        modules=request.modules,
        source=request.source,
        environment=request.environment,
        cpus_per_task=request.cpus_per_task,
        step_cpus=request.cpus_per_task * request.tasks_per_node,
        step_arguments=[*_all_gpus(request), *srun_arguments(request)],
        scratch_variable=variable,
        scratch_below=below,
        command=[*python_command(request), "-m", "megatune", "search", str(folder.run_file), "--worker"],
    )


def submit_workers(request: JobRequest, folder: SearchFolder, call: Call) -> HandedIn:
    """Write the script and hand it in. Raises SubmitError when Slurm refuses it."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder.workers_script, render_workers(request, folder))
    return hand_in(folder.workers_script, call=call)


def _all_gpus(request: JobRequest) -> list[str]:
    """The worker is one task: where each task has a GPU, it must be given all of them."""
    gpus = request.gpus
    if gpus is None or gpus.request != "gpus-per-task":
        return []
    kind = f"{gpus.type}:" if gpus.type else ""
    return [f"--gpus-per-task={kind}{gpus.per_node}"]
