"""From a job request to the text of its batch script. Pure: nothing is read but the template."""

import shlex
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from megatune.launch.slurm import text
from megatune.launch.slurm.request import Gpus, JobRequest

_TEMPLATE = "job.sbatch.j2"


def render_script(request: JobRequest) -> str:
    """The batch script of `request`. What `request` holds has been checked; here it is quoted."""
    variable, below = text.scratch_parts(request.scratch)
    return template(_TEMPLATE).render(
        directives=directives(request),
        runs=request.runs,
        log_folder=f"{request.runs[0]}/logs",
        script_path=f"{request.runs[0]}/job.sbatch",
        nodes=request.nodes,
        tasks_per_node=request.tasks_per_node,
        cpus_per_task=request.cpus_per_task,
        signal=request.signal_delay_s > 0,
        requeue=request.requeue,
        not_queued_reason="slurm.requeue or the site profile says so, or the job is one of a chain",
        max_restarts=request.max_restarts,
        time_limit_s="null" if request.time_limit_s is None else request.time_limit_s,
        guard=outlives_nodes(request),
        preflight=request.preflight,
        ops=request.ops,
        module_purge=request.module_purge,
        modules=request.modules,
        source=request.source,
        environment=request.environment,
        interface=request.interface,
        scratch_variable=variable,
        scratch_below=below,
        python_command=python_command(request),
        srun_arguments=srun_arguments(request),
        own_arguments="".join(f" {shlex.quote(argument)}" for argument in srun_arguments(request)),
        mpi=request.mpi,
    )


@cache
def template(name: str) -> Template:
    """A batch script of this package. Values are quoted where the template says so."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quote"] = shlex.quote
    return environment.from_string(files("megatune.launch.slurm").joinpath(name).read_text(encoding="utf-8"))


def outlives_nodes(request: JobRequest) -> bool:
    """Whether the batch shell goes on when a node is lost, to queue the job again without that node."""
    return request.nodes > 1 and request.requeue != "none"


def directives(request: JobRequest) -> list[str]:
    """The #SBATCH lines, without the word #SBATCH."""
    log = "job-%A_%a.log" if len(request.runs) > 1 else "job-%j.log"
    values: list[tuple[str, str | None]] = [
        ("job-name", request.job_name),
        ("chdir", request.working_dir),
        ("partition", request.partition),
        ("account", request.account),
        ("qos", request.qos),
        ("constraint", request.constraint),
        ("reservation", request.reservation),
        ("nodes", str(request.nodes)),
        ("ntasks-per-node", str(request.tasks_per_node)),
        ("cpus-per-task", str(request.cpus_per_task)),
        _gpus(request.gpus),
        ("mem", request.mem),
        ("time", request.time),
        ("nodelist", request.nodelist),
        ("exclude", request.exclude),
        ("array", _array(request)),
        ("signal", f"B:USR2@{request.signal_delay_s}" if request.signal_delay_s else None),
    ]
    lines = [f"--{name}={text.sbatch_value(value)}" for name, value in values if value is not None]
    lines.append(f"--output={text.sbatch_value(text.log_pattern(f'{request.runs[0]}/logs', log))}")
    lines.append("--open-mode=append")
    lines.append("--requeue" if request.requeue == "requeue" else "--no-requeue")
    lines += ["--exclusive"] * request.exclusive + ["--no-kill"] * outlives_nodes(request)
    lines += [
        f"--{name}" if value is None else f"--{name}={text.sbatch_value(value)}"
        for name, value in request.additional
    ]
    return lines


def _gpus(gpus: Gpus | None) -> tuple[str, str | None]:
    if gpus is None or gpus.request == "none":
        return "gpus-per-node", None
    kind = f"{gpus.type}:" if gpus.type else ""
    if gpus.request == "gpus-per-task":
        return "gpus-per-task", f"{kind}1"
    if gpus.request == "gres":
        return "gres", f"gpu:{kind}{gpus.per_node}"
    return "gpus-per-node", f"{kind}{gpus.per_node}"


def _array(request: JobRequest) -> str | None:
    if len(request.runs) == 1:
        return None
    throttle = "" if request.array_parallelism is None else f"%{request.array_parallelism}"
    return f"0-{len(request.runs) - 1}{throttle}"


def python_command(request: JobRequest) -> list[str]:
    """What stands before the arguments of Python, in front of each rank."""
    container = request.container
    if container is None or container.runtime == "pyxis":
        return [request.python]
    command = ["apptainer", "exec", *(["--nv"] if request.gpus else [])]
    for mount in _mounts(request):
        command += ["--bind", mount]
    return [*command, "--pwd", request.working_dir, container.image, request.python]


def srun_arguments(request: JobRequest) -> list[str]:
    """Options of every srun of the job, beside those of the template."""
    arguments = [] if request.mpi is None else [f"--mpi={request.mpi}"]
    container = request.container
    if container is not None and container.runtime == "pyxis":
        arguments += [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(_mounts(request))}",
            f"--container-workdir={request.working_dir}",
        ]
    return [*arguments, *request.srun_args]


def _mounts(request: JobRequest) -> list[str]:
    """The site's mounts, the working directory and the run folders: without these no rank finds its run."""
    assert request.container is not None, "called for a request with a container"
    own = [f"{folder}:{folder}" for folder in (request.working_dir, *request.runs)]
    return list(dict.fromkeys([*request.container.mounts, *own]))
