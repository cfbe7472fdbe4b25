"""The cases of a suite, one after another, round after round."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    which all see `folder`; without it on this machine, and in a folder of its own.
    """
    begun, longest_s = time.monotonic(), 0.0
    results = [Result(case, suite.work_of(case) if case.program is None else None) for case in cases]
    with tempfile.TemporaryDirectory(prefix="megatune-bench-", dir=folder) as scratch:
        written: dict[Work, Inputs] = {}
        for number in range(1, rounds + 1):
            for result in results:
                if result.failure is None:
                    started = time.monotonic()
                    left_s = budget_s - (started - begun)
                    if left_s < longest_s:
                        _leave_out(result, note, f"round {number}/{rounds}")
                        continue
                    _run_once(result, written, Path(scratch), min(timeout_s, left_s), place)
                    longest_s = max(longest_s, time.monotonic() - started)
                    ended = result.failure or f"{time.monotonic() - started:.0f} s"
                    note(f"round {number}/{rounds}: {name_of(result.case)}: {ended}")
    return results


def _leave_out(result: Result, note: Callable[[str], None], where: str) -> None:
    note(f"{where}: {name_of(result.case)}: left out, the time is up")
    if not (result.measurements or result.programs):
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
            result.programs.append(run_program(result.case, timeout_s=timeout_s))
            return
        chosen = place(result.work)
        if result.work not in written:
            written[result.work] = write_inputs(result.work, folder / f"work-{len(written)}")
        result.measurements.append(
            measure(result.case, result.work, written[result.work], timeout_s=timeout_s, place=chosen)
        )
    except LaunchError as error:
        result.failure = str(error)
