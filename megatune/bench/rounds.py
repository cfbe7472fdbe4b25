"""The cases of a suite, one after another, round after round."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatune.bench.cut_off import CutOff
from megatune.bench.inputs import Inputs, write_inputs
from megatune.bench.largest import Chosen, MachineOf, choose_largest, here
from megatune.bench.measure import Measurement, measure, run_program
from megatune.bench.suite import LARGEST, Case, Suite, Work
from megatune.errors import LaunchError, MegatuneError
from megatune.launch.slurm.places import Here, Place


@dataclass
class Result:
    """All runs of one case."""

    case: Case
    work: Work | None
    measurements: list[Measurement] = field(default_factory=list)
    programs: list[list[dict[str, Any]]] = field(default_factory=list)
    """What a program case printed, a list a round."""
    largest: Chosen | None = None
    """The model that was taken where the case asks for the largest one."""
    failure: str | None = None
    """Why it was not run (again): a case that failed once is left out of later rounds."""

    @property
    def has_run(self) -> bool:
        """Whether a run of it ended well."""
        return bool(self.measurements or self.programs)


def one_machine(work: Work) -> Place:
    """Where a case trains without a job. Raises LaunchError for one that asks for several nodes."""
    if work.nodes is not None and work.nodes > 1:
        raise LaunchError(f"needs {work.nodes} nodes: hand the suite in with --slurm RUN.yaml")
    return Here()


def run_rounds(
    suite: Suite,
    cases: Sequence[Case],
    *,
    rounds: int,
    timeout_s: float,
    note: Callable[[str], None],
    budget_s: float = math.inf,
    place: Callable[[Work], Place] = one_machine,
    machine_of: MachineOf = here,
    folder: Path | None = None,
) -> list[Result]:
    """Run every case once in each round, so that what else the machine does meets all of them.

    A case that fails or hangs becomes a result with its failure; the others go on. No case begins for which
    `budget_s`, the time for all, leaves less than the longest one has taken. `place`: where a case trains, on nodes
    which all see `folder`; without it on this machine, and in a folder of its own. `machine_of`: what the largest model
    is chosen for. CutOff ends it: what was finished is returned.
    """
    results = [Result(case, suite.work_of(case) if case.program is None else None) for case in cases]
    try:
        with tempfile.TemporaryDirectory(prefix="megatune-bench-", dir=folder) as scratch:
            limits = _Limits(timeout_s, budget_s)
            cases_run = _Running(limits, note, place, machine_of, Path(scratch))
            for number in range(1, rounds + 1):
                for result in results:
                    if result.failure is None:
                        cases_run.take(result, f"round {number}/{rounds}: {name_of(result.case)}")
    except CutOff as signal:
        note(f"cut off by {signal}")
        for result in results:
            if not (result.has_run or result.failure):
                result.failure = f"not run: cut off by {signal}"
    return results


class _Limits:
    """What time is left."""

    def __init__(self, timeout_s: float, budget_s: float) -> None:
        self._timeout_s, self._ends_at = timeout_s, time.monotonic() + budget_s
        self._longest_s = 0.0

    def next_s(self) -> float | None:
        """Seconds that the next case may take; None where it would hardly end in time."""
        left_s = self._ends_at - time.monotonic()
        return None if left_s < self._longest_s else min(self._timeout_s, left_s)

    def note(self, seconds: float) -> None:
        """A case took so long."""
        self._longest_s = max(self._longest_s, seconds)


@dataclass
class _Running:
    """What the runs of all cases share."""

    limits: _Limits
    note: Callable[[str], None]
    place: Callable[[Work], Place]
    machine_of: MachineOf
    scratch: Path
    written: dict[Work, Inputs] = field(default_factory=dict)

    def take(self, result: Result, where: str) -> None:
        """Run a case once, or leave it out when the time is up."""
        started, limit_s = time.monotonic(), self.limits.next_s()
        if limit_s is None:
            self.note(f"{where}: left out, the time is up")
            if not result.has_run:
                result.failure = "not run: the time was up"
            return
        try:
            self._run(result, limit_s)
        except MegatuneError as error:  # a layout or a model may be refused here too, not by the ranks alone
            result.failure = str(error)
        seconds = time.monotonic() - started
        self.limits.note(seconds)
        self.note(f"{where}: {result.failure or f'{seconds:.0f} s'}")

    def _run(self, result: Result, limit_s: float) -> None:
        if result.work is None:
            temporary = Path(tempfile.mkdtemp(prefix="program-", dir=self.scratch))
            result.programs.append(run_program(result.case, timeout_s=limit_s, temporary=temporary))
            return
        chosen = self.place(result.work)
        if result.work.model == LARGEST:
            overrides = result.case.train or ()
            result.largest = choose_largest(result.work, overrides, self.scratch, machine_of=self.machine_of)
            result.work = result.largest.work
        inputs = self.written.get(result.work)
        if inputs is None:
            inputs = write_inputs(result.work, self.scratch / f"work-{len(self.written)}")
            self.written[result.work] = inputs
        result.measurements.append(measure(result.case, result.work, inputs, timeout_s=limit_s, place=chosen))


def name_of(case: Case) -> str:
    """The case with the group it belongs to."""
    return f"{case.name} ({case.group})" if case.group else case.name
