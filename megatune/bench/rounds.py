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
from megatune.bench.measure import Measurement, measure, run_program
from megatune.bench.suite import Case, Suite, Work
from megatune.errors import LaunchError
from megatune.launch.slurm.places import Here, Place


@dataclass
class Result:
    """All runs of one case."""

    case: Case
    work: Work | None
    measurements: list[Measurement] = field(default_factory=list)
    programs: list[list[dict[str, Any]]] = field(default_factory=list)
    """What a program case printed, a list a round."""
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
    folder: Path | None = None,
) -> list[Result]:
    """Run every case once in each round, so that what else the machine does meets all of them.

    A case that fails or hangs becomes a result with its failure; the others go on. No case begins for which
    `budget_s`, the time for all, leaves less than the longest one has taken. `place`: where a case trains, on nodes
    which all see `folder`; without it on this machine, and in a folder of its own. CutOff ends it: what was finished
    is returned.
    """
    results = [Result(case, suite.work_of(case) if case.program is None else None) for case in cases]
    try:
        with tempfile.TemporaryDirectory(prefix="megatune-bench-", dir=folder) as scratch:
            limits = _Limits(timeout_s, budget_s)
            _run_all(results, rounds, limits, note, place, Path(scratch))
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


def _run_all(
    results: Sequence[Result],
    rounds: int,
    limits: _Limits,
    note: Callable[[str], None],
    place: Callable[[Work], Place],
    scratch: Path,
) -> None:
    written: dict[Work, Inputs] = {}
    for number in range(1, rounds + 1):
        for result in results:
            if result.failure is not None:
                continue
            started, limit_s = time.monotonic(), limits.next_s()
            where = f"round {number}/{rounds}: {name_of(result.case)}"
            if limit_s is None:
                _leave_out(result, note, where)
                continue
            _run_once(result, written, scratch, limit_s, place)
            seconds = time.monotonic() - started
            limits.note(seconds)
            note(f"{where}: {result.failure or f'{seconds:.0f} s'}")


def _leave_out(result: Result, note: Callable[[str], None], where: str) -> None:
    note(f"{where}: left out, the time is up")
    if not result.has_run:
        result.failure = "not run: the time was up"


def name_of(case: Case) -> str:
    """The case with the group it belongs to."""
    return f"{case.name} ({case.group})" if case.group else case.name


def _run_once(
    result: Result,
    written: dict[Work, Inputs],
    folder: Path,
    timeout_s: float,
    place: Callable[[Work], Place],
) -> None:
    try:
        if result.work is None:
            temporary = Path(tempfile.mkdtemp(prefix="program-", dir=folder))
            result.programs.append(run_program(result.case, timeout_s=timeout_s, temporary=temporary))
            return
        chosen = place(result.work)
        if result.work not in written:
            written[result.work] = write_inputs(result.work, folder / f"work-{len(written)}")
        result.measurements.append(
            measure(result.case, result.work, written[result.work], timeout_s=timeout_s, place=chosen)
        )
    except LaunchError as error:
        result.failure = str(error)
