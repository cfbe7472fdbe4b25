"""A suite as a Slurm job array: each task takes one round of it on all nodes of its own allocation.

Rounds meet other nodes and other hours, the cases of one round the same: what is compared with each other ran on the
same nodes. The folder holds the suite, the run file that says what a task asks for, and a record a round.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatune.bench.cut_off import CutOffSignals
from megatune.bench.links import measure_links
from megatune.bench.measure import Measurement
from megatune.bench.record import make_record, read_record, record_of
from megatune.bench.rounds import Result, run_rounds
from megatune.bench.suite import Case, Suite, Work
from megatune.config import LoadedRun, load_run, resolved_yaml
from megatune.errors import ConfigError, LaunchError
from megatune.files import write_text_atomic
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.ranks import in_allocation_shell, own_slurm_job
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.places import InAllocation
from megatune.launch.slurm.request import JobRequest
from megatune.launch.slurm.submit import HandedIn
from megatune.launch.slurm.workers_job import (
    WorkersJob,
    build_workers_request,
    request_of,
    site_by_path,
    submit_workers,
)
from megatune.report.tables import to_json

_SOURCE = "megatune bench"
_ASKED = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line said, for the tasks of the array and for who collects their records."""

    suite_name: str
    suite: Suite
    rounds: int
    timeout_s: float

    def to_json(self) -> str:
        return to_json(
            {
                "suite_name": self.suite_name,
                "suite": self.suite.model_dump(),
                "rounds": self.rounds,
                "timeout_s": self.timeout_s,
            }
        )


@dataclass(frozen=True)
class BenchFolder:
    """A suite on a cluster, on disk."""

    path: Path

    @classmethod
    def of(cls, loaded: LoadedRun, suite_name: str) -> "BenchFolder":
        return cls(Path(loaded.run.train.output_dir).absolute() / f"bench-{suite_name}")

    @property
    def job(self) -> WorkersJob:
        return WorkersJob("bench", self.path, spans_nodes=True, argument=_ASKED)

    @property
    def run_file(self) -> Path:
        return self.path / "run.yaml"

    def round(self, number: int) -> Path:
        """The record of one task of the array."""
        return self.path / f"round-{number:03d}.json"

    def asked(self) -> Asked:
        """Raises ConfigError where no suite was handed in."""
        try:
            values = json.loads((self.path / _ASKED).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                [f"no suite was handed in from {self.path}: leave out --collect first."], source=_SOURCE
            ) from None
        return Asked(**{**values, "suite": Suite.model_validate(values["suite"])})


def load_job(run_file: Path, overrides: Sequence[str]) -> LoadedRun:
    """The run whose slurm section says what a task asks for, with its site where the tasks find it.

    Raises ConfigError with every problem at once.
    """
    loaded = load_run(run_file, overrides)
    slurm = loaded.run.slurm
    if slurm is None:
        raise ConfigError(
            ["--slurm needs the run file's slurm section: it says what the job asks for."], source=_SOURCE
        )
    return load_run(run_file, [*overrides, f"launch.nodes={slurm.nodes}", *site_by_path(loaded, run_file)])


def submit_suite(asked: Asked, loaded: LoadedRun, folder: BenchFolder, call: Call) -> HandedIn:
    """Hand the suite in, one task a round. Raises ConfigError with every problem, SubmitError when Slurm refuses it."""
    problems = [
        f"case {case.name!r} is no training: on nodes of a job only cases with `train` run."
        for case in asked.suite.cases
        if case.train is None
    ]
    done = [number for number in range(asked.rounds) if folder.round(number).exists()]
    if done:
        problems.append(
            f"{folder.path} has {len(done)} round(s) already: --collect shows them. Give another train.output_dir, or "
            "remove the folder."
        )
    if problems:
        raise ConfigError(problems, source=_SOURCE)
    request = build_workers_request(loaded, folder.job, folder.run_file, asked.rounds)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder.path / _ASKED, asked.to_json() + "\n")
    write_text_atomic(folder.run_file, resolved_yaml(loaded))
    return submit_workers(request, folder.job, call)


def take_round(folder: BenchFolder, call: Call, note: Callable[[str], None]) -> int:
    """Be a task of the array: all cases once, on this allocation. The exit code: 0 when all of them trained.

    75 where a signal cut it off: no record is written, and the task takes the round anew when it is queued again.
    Raises ConfigError outside an array of jobs.
    """
    job = own_slurm_job()
    task = (job.job_id or "").rpartition("_")[2] if job else ""
    if not in_allocation_shell() or not task.isdecimal():
        raise ConfigError(["--worker is for the tasks of `megatune bench SUITE --slurm`."], source=_SOURCE)
    asked, loaded = folder.asked(), load_run(folder.run_file)
    request = request_of(loaded, folder.path, folder.run_file)
    with CutOffSignals() as signals:
        results = run_rounds(
            asked.suite,
            [_on_the_job(asked.suite, case, request) for case in asked.suite.cases],
            rounds=1,
            timeout_s=asked.timeout_s,
            note=note,
            place=lambda work: _place(work, request, call),
            folder=folder.path,
        )
    if signals.received is not None:
        return STOPPED_BUT_SAVED
    works = [result.work for result in results if result.work and result.measurements]
    between = sorted({work.nodes for work in works if work.nodes and work.nodes > 1})
    places = [InAllocation(replace(request, nodes=nodes), call) for nodes in between]
    links = measure_links(places, folder.path / f"links-of-round-{task}")
    record = make_record(asked.suite_name, asked.suite, results, 1, node_links=links)
    write_text_atomic(folder.round(int(task)), to_json(record) + "\n")
    return 0 if all(result.failure is None for result in results) else 1


def collect(folder: BenchFolder) -> tuple[dict[str, Any], Asked]:
    """One record of all rounds that are there. Raises ConfigError before the first."""
    asked = folder.asked()
    found = {number: folder.round(number) for number in range(asked.rounds)}
    records = {number: read_record(path) for number, path in found.items() if path.exists()}
    if not records:
        raise ConfigError(
            [f"no round has ended yet. `squeue --me` shows the job, {folder.job.logs} its output."],
            source=_SOURCE,
        )
    results = [
        _joined(case, [(number, record["cases"][index]) for number, record in records.items()])
        for index, case in enumerate(asked.suite.cases)
    ]
    first = next(iter(records.values()))
    keys = ("time", "machine", "peaks", "other_peaks", "node_links", "versions", "commit")
    measured = {key: first.get(key) for key in keys}
    return record_of(asked.suite_name, asked.suite, results, len(records), measured), asked


def _on_the_job(suite: Suite, case: Case, request: JobRequest) -> Case:
    """`case` with the ranks that its nodes have."""
    nodes = suite.work_of(case).nodes or request.nodes
    placed = {"nodes": nodes, "ranks": nodes * request.tasks_per_node}
    return case.model_copy(update={"work": {**case.work, **placed}})


def _place(work: Work, request: JobRequest, call: Call) -> InAllocation:
    assert work.nodes is not None, "set for every case of a job"
    if work.nodes > request.nodes:
        raise LaunchError(f"needs {work.nodes} nodes, and the job has {request.nodes}")
    return InAllocation(replace(request, nodes=work.nodes), call)


def _joined(case: Case, rounds: Sequence[tuple[int, dict[str, Any]]]) -> Result:
    """All rounds of a case. One that failed in some has no ratio: its rounds would meet others of the baseline."""
    failures = [f"round {number}: {entry['failure']}" for number, entry in rounds if entry["failure"]]
    trained = [entry for _, entry in rounds if not entry["failure"]]
    return Result(
        case,
        Work.model_validate(trained[0]["work"]) if trained else None,
        measurements=[Measurement(**run) for entry in trained for run in entry["runs"]],
        failure="; ".join(failures) or None,
    )
