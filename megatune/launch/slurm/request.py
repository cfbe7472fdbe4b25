"""What one job asks for, everything resolved: the run file's slurm section over the site profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from megatune.config import LoadedRun, Run, SlurmSection, resolve_batch
from megatune.errors import ConfigError
from megatune.launch.extensions import needed_ops
from megatune.launch.slurm import text
from megatune.launch.slurm.options import check_additional, check_srun_arguments
from megatune.launch.slurm.quantities import parse_limit_s
from megatune.launch.slurm.site import Container, GpuRequest, Requeue, SiteProfile
from megatune.plan.ds_config import Json, make_ds_config, read_policy

_MAX_SIGNAL_DELAY_S = 65535  # sbatch(1), --signal
_SUBMITTABLE = ("auto", "slurm")


@dataclass(frozen=True, kw_only=True)
class RunToSubmit:
    """A loaded run and the absolute path of its run folder."""

    loaded: LoadedRun
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of each node, and the option that asks for them."""

    per_node: int
    request: GpuRequest
    type: str | None = None
    """Slurm's name."""
    name: str | None = None
    """The hardware table's name."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job, or one array of jobs that ask for the same. All values are checked; see `build_request`."""

    runs: tuple[str, ...]
    """Absolute run folders; several make an array."""
    working_dir: str
    """Where the run files' relative paths begin."""
    job_name: str
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus: Gpus | None
    mem: str | None
    time: str | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None
    nodelist: str | None
    exclusive: bool
    signal_delay_s: int
    requeue: Requeue
    max_restarts: int
    array_parallelism: int | None
    preflight: bool
    ops: tuple[str, ...]
    """DeepSpeed ops to compile on each node first."""
    python: str
    container: Container | None
    modules: tuple[str, ...]
    module_purge: bool
    source: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    interface: str | None
    scratch: str
    mpi: str | None
    additional: tuple[tuple[str, str | None], ...]
    srun_args: tuple[str, ...]

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def time_limit_s(self) -> int | None:
        return None if self.time is None else parse_limit_s(self.time) or None  # 0 is no limit to sbatch


_OF_ONE_RUN = frozenset({"runs", "job_name"})


def build_request(
    run: RunToSubmit, site: SiteProfile | None, *, python: str, working_dir: Path
) -> JobRequest:
    """The job of `run` on `site`. Looks at no file but the run's DeepSpeed policy.

    python: the interpreter to use where the site names none. Raises ConfigError with every problem at once.
    """
    return _Builder(run, site or SiteProfile()).build(python, working_dir)


def join_requests(requests: Sequence[JobRequest]) -> JobRequest:
    """One request for an array of all of them. Raises ConfigError where they do not ask for the same."""
    first = requests[0]
    problems = []
    for other in requests[1:]:
        for item in fields(JobRequest):
            ours, theirs = getattr(first, item.name), getattr(other, item.name)
            if item.name not in _OF_ONE_RUN and ours != theirs:
                problems.append(
                    f"the runs of an array are one job, but {item.name} is {ours} for {first.runs[0]} and "
                    f"{theirs} for {other.runs[0]}. Make them equal, or submit the run by itself."
                )
    folders = [request.runs[0] for request in requests]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    problems += [f"several runs of the array have train.output_dir = {folder}." for folder in twice]
    if problems:
        raise ConfigError(problems, source="the array")
    return JobRequest(
        **{item.name: getattr(first, item.name) for item in fields(JobRequest) if item.name != "runs"},
        runs=tuple(folders),
    )


class _Builder:
    """Resolves one request and gathers what is wrong with it."""

    def __init__(self, run: RunToSubmit, site: SiteProfile) -> None:
        self.run: Run = run.loaded.run
        self.folder = run.folder
        self.slurm = self.run.slurm or SlurmSection()
        self.site = site
        self.policy: Json = {}
        self.problems: list[str] = []

    def build(self, python: str, working_dir: Path) -> JobRequest:
        slurm, site = self.slurm, self.site
        nodes = self._nodes()
        tasks, gpus = self._tasks()
        self._launcher()
        self._layout(nodes * tasks)
        container = site.container if slurm.container == "site" else None
        request = JobRequest(
            runs=(self._folder(self.folder, "train.output_dir", container),),
            working_dir=self._folder(working_dir, "the working directory", container),
            job_name=self._job_name(),
            nodes=nodes,
            tasks_per_node=tasks,
            cpus_per_task=self._cpus(tasks),
            gpus=gpus,
            mem=slurm.mem or site.mem_per_node,
            time=self._time(),
            partition=self._checked("partition", text.names),
            account=self._checked("account", text.names),
            qos=self._checked("qos", text.names),
            constraint=self._checked("constraint", text.constraint),
            reservation=self._checked("reservation", text.names),
            exclude=self._checked("exclude", text.hosts),
            nodelist=self._checked("nodelist", text.hosts),
            exclusive=site.exclusive,
            signal_delay_s=slurm.signal_delay_s,
            requeue=site.requeue if slurm.requeue else "none",
            max_restarts=slurm.max_restarts,
            array_parallelism=slurm.array_parallelism,
            preflight=slurm.preflight,
            ops=tuple(needed_ops(self.run, self.policy, gpus.per_node if gpus else 0)),
            python=self._python(python, container),
            container=container,
            modules=tuple(site.modules),
            module_purge=site.module_purge,
            source=tuple(site.source),
            environment=tuple(site.environment.items()),
            interface=site.network_interface,
            scratch=site.scratch,
            mpi=site.mpi,
            additional=self._additional(),
            srun_args=self._srun_args(),
        )
        if self.problems:
            raise ConfigError(self.problems)
        return request

    def _nodes(self) -> int:
        given = {"nodes"} & self.slurm.model_fields_set
        return self.slurm.nodes if given else self.run.launch.nodes

    def _tasks(self) -> tuple[int, Gpus | None]:
        """Ranks on each node: one a GPU, or as many as the run file says."""
        asked = self.run.launch.nproc_per_node
        per_node = self.slurm.gpus_per_node
        per_node = self.site.gpus_per_node if per_node is None else per_node
        if per_node is None:
            self.problems.append(
                "slurm.gpus_per_node is missing, here and in the site profile: how many GPUs of each node to use. "
                "Give 0 to train on CPUs."
            )
            return 1, None
        if per_node == 0:
            if asked == "auto":
                self.problems.append(
                    "launch.nproc_per_node is auto, but without GPUs (slurm.gpus_per_node = 0) nothing here says "
                    "how many ranks a node has; give a number."
                )
            return (1 if asked == "auto" else asked), None
        if asked not in ("auto", per_node):
            self.problems.append(
                f"launch.nproc_per_node = {asked} and {per_node} GPUs a node differ; a rank has one GPU. "
                f"Use launch.nproc_per_node=auto or slurm.gpus_per_node={asked}."
            )
        site = self.site
        return per_node, Gpus(per_node=per_node, request=site.gpu_request, type=site.gpu_type, name=site.gpu)

    def _launcher(self) -> None:
        launcher = self.run.launch.launcher
        if launcher not in _SUBMITTABLE:
            self.problems.append(
                f"launch.launcher = {launcher}, but a submitted job starts its ranks with srun; use auto or slurm."
            )

    def _layout(self, num_ranks: int) -> None:
        degree = self.run.parallel.tp_size
        if num_ranks % degree:
            self.problems.append(
                f"parallel.tp_size = {degree} does not divide the {num_ranks} ranks of the job "
                f"(nodes x ranks on each); change one of them."
            )
            return
        try:
            self.policy = read_policy(self.run.deepspeed)
            make_ds_config(self.run, resolve_batch(self.run, num_ranks // degree), self.policy)
        except ConfigError as error:
            self.problems += error.problems

    def _cpus(self, tasks: int) -> int:
        if self.slurm.cpus_per_task is not None:
            return self.slurm.cpus_per_task
        cores = self.site.cpus_per_node
        if cores is None:
            self.problems.append(
                "slurm.cpus_per_task is missing: CPU cores for each rank. Slurm gives one core where nothing is said. "
                "Give it, or cpus_per_node in the site profile."
            )
            return 1
        if cores < tasks:
            self.problems.append(
                f"cpus_per_node = {cores} in the site profile does not reach for {tasks} ranks on each node; "
                "start fewer ranks on each node."
            )
        return max(1, cores // tasks)

    def _time(self) -> str | None:
        time, delay_s = self.slurm.time, self.slurm.signal_delay_s
        if delay_s > _MAX_SIGNAL_DELAY_S:
            self.problems.append(
                f"slurm.signal_delay_s = {delay_s}; Slurm takes at most {_MAX_SIGNAL_DELAY_S}."
            )
        limit_s = None if time is None else parse_limit_s(time)
        if limit_s and limit_s <= delay_s:
            self.problems.append(
                f"slurm.time = {time} is not longer than slurm.signal_delay_s = {delay_s}: the run would be told "
                "to stop as soon as it starts. Ask for more time, or for less warning."
            )
        return time

    def _job_name(self) -> str:
        name = self.slurm.job_name
        return (
            text.job_name(self.folder.name)
            if name is None
            else self._valid(name, "job_name", text.given_job_name)
        )

    def _python(self, python: str, container: Container | None) -> str:
        if container is not None:
            return container.python
        return self.site.python or python

    def _checked(self, key: str, check: Callable[[str], str]) -> str | None:
        value = getattr(self.slurm, key)
        if value is None:
            value = getattr(self.site, key, None)
        return None if value is None else self._valid(value, key, check)

    def _valid(self, value: str, key: str, check: Callable[[str], str]) -> str:
        try:
            return check(value)
        except ValueError as error:
            self.problems.append(f"slurm.{key} is {value!r}; it must be {error}.")
            return ""

    def _folder(self, folder: Path, what: str, container: Container | None) -> str:
        try:
            text.log_pattern(str(folder), "")
            if container is not None:
                text.mount(f"{folder}:{folder}")
        except ValueError as error:
            self.problems.append(f"{what} is {str(folder)!r}; for Slurm it must be {error}.")
        return str(folder)

    def _additional(self) -> tuple[tuple[str, str | None], ...]:
        own = self.slurm.additional_parameters
        self.problems += [f"slurm.additional_parameters: {problem}." for problem in check_additional(own)]
        given = {**self.site.additional_parameters, **own}
        return tuple(
            (name, None if value is True else str(value))
            for name, value in given.items()
            if value is not False
        )

    def _srun_args(self) -> tuple[str, ...]:
        own = self.slurm.srun_args
        self.problems += [f"slurm.srun_args: {problem}." for problem in check_srun_arguments(own)]
        return (*self.site.srun_args, *own)
