"""`megatune bench`: run a suite, keep its record, say what it shows."""

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from megatune.bench.compare import Spread
from megatune.bench.cut_off import CutOff, CutOffSignals
from megatune.bench.inputs import model_folder
from megatune.bench.on_cluster import Asked, BenchFolder, collect, load_job, submit_suite, take_round
from megatune.bench.printed import render_tables
from megatune.bench.record import machine, make_record, peak_words, read_record, save_record, what_ran
from megatune.bench.regressions import Verdict, compare_records, obstacles
from megatune.bench.rounds import Result, name_of, run_rounds
from megatune.bench.suite import LARGEST, MOST_RANKS, Case, Suite, Work, load_suite
from megatune.cli.workers import show_handed_in
from megatune.config import LoadedRun
from megatune.errors import ConfigError
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.slurm.command import call
from megatune.report.tables import show

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the command line gives."""

    only: tuple[str, ...] = ()
    rounds: int | None = None
    compare: Path | None = None
    results: Path = RESULTS
    timeout_s: float = 1800.0
    budget_s: float = math.inf
    as_json: bool = False
    slurm: Path | None = None
    """The run file whose slurm section says what a task of the array asks for."""


def bench_suite(name: str, options: BenchOptions) -> int:
    """Run the suite and print its record. Returns the exit code (`exit_code`)."""
    suite = load_suite(name)
    before = read_record(options.compare) if options.compare else None
    cases = chosen(suite, options.only)
    if missing := missing_models(works_of(suite, cases)):  # sooner than after the cases before it
        raise ConfigError(missing, source="the suite")
    if before is not None:
        refuse_incomparable(before, machine(), suite, cases)
    rounds = options.rounds or suite.rounds
    stem = Path(name).stem
    results: list[Result] = []
    signals = CutOffSignals()
    try:
        with signals:
            results = run_rounds(
                suite,
                cases,
                rounds=rounds,
                timeout_s=options.timeout_s,
                budget_s=options.budget_s,
                note=lambda text: print(text, file=sys.stderr),
            )
            record = make_record(stem, suite, results, rounds, cut_off=signals.received)
    except CutOff:  # while the peaks were measured: all cases are there
        record = make_record(stem, suite, results, rounds, cut_off=signals.received)
    if signals.received is not None and not any(result.has_run for result in results):
        print("megatune: no run of a case had ended: there is no record", file=sys.stderr)
        return 1
    return _show_record(record, before, options)  # all is measured: signals do what they do in any command


def hand_in_suite(name: str, options: BenchOptions) -> int:
    """Hand the suite to Slurm, a task of an array for each round."""
    suite = load_suite(name)
    cases = chosen(suite, options.only)
    _refuse_what_no_job_takes(suite, cases, works_of(suite, cases))
    asked = Asked(
        suite_name=Path(name).stem,
        suite=suite.model_copy(update={"cases": tuple(cases), "matrix": {}}),
        rounds=options.rounds or suite.rounds,
        timeout_s=options.timeout_s,
    )
    loaded, folder = _on_slurm(name, options)
    job = submit_suite(asked, loaded, folder, call)
    return show_handed_in(
        job,
        folder.job,
        {"rounds": asked.rounds},
        words=f"{asked.rounds} round(s) of {len(asked.suite.cases)} case(s)",
        afterwards=f"record: megatune bench {shlex.quote(name)} --slurm {shlex.quote(str(options.slurm))} --collect",
        as_json=options.as_json,
    )


def _refuse_what_no_job_takes(suite: Suite, cases: Sequence[Case], works: Mapping[str, Work | None]) -> None:
    """Raise ConfigError for those of `cases` that count on the machine itself, and for models that are not there."""
    asked = {case.name for case in cases}
    problems = [
        f"case {case.name!r} counts the devices of one machine (`ranks`): on nodes of a job a case has all their "
        "ranks. Leave it out with --only."
        for case in suite.cases
        if case.ranks is not None and any(one.name in asked for one in case.over_ranks(MOST_RANKS))
    ]
    if any(work is not None and work.model == LARGEST for work in works.values()):
        problems.append(f"work.model = {LARGEST} is chosen on one machine: name a model.")
    problems += missing_models(works)
    if problems:
        raise ConfigError(problems, source="megatune bench --slurm")


def missing_models(works: Mapping[str, Work | None]) -> list[str]:
    """What is wrong with the models of `works` that are named, each once."""
    problems: dict[str, None] = {}
    for work in works.values():
        if work is not None and work.model != LARGEST:
            try:
                model_folder(work)
            except ConfigError as error:
                problems.update(dict.fromkeys(error.problems))
    return list(problems)


def collect_suite(name: str, options: BenchOptions) -> int:
    """Print and keep the record of the rounds that Slurm has run so far."""
    before = read_record(options.compare) if options.compare else None
    record, asked = collect(_on_slurm(name, options)[1])
    if record["rounds"] < asked.rounds:
        print(f"{record['rounds']} of {asked.rounds} rounds have ended", file=sys.stderr)
    return _show_record(record, before, options)


def work_for(asked_file: Path) -> int:
    """Be a task of the array: one round of the suite that `asked_file` holds."""
    folder = BenchFolder(asked_file.absolute().parent)
    return take_round(folder, call, lambda text: print(text, file=sys.stderr))


def _on_slurm(name: str, options: BenchOptions) -> tuple[LoadedRun, BenchFolder]:
    if options.slurm is None:
        raise ConfigError(["--collect needs --slurm RUN.yaml, as it was handed in."], source="megatune bench")
    loaded = load_job(options.slurm, [])
    return loaded, BenchFolder.of(loaded, Path(name).stem)


def _show_record(record: dict[str, Any], before: dict[str, Any] | None, options: BenchOptions) -> int:
    path = save_record(record, options.results)
    verdicts = [] if before is None else compare_records(before, record)
    compared = {} if before is None else {"compared": [asdict(verdict) for verdict in verdicts]}
    show({**record, **compared}, *tables(record), as_json=options.as_json)
    part = f" (of what was finished when {record['cut_off']} came)" if record["cut_off"] else ""
    print(f"record: {path}{part}", file=sys.stderr)
    for verdict in verdicts:
        print(f"{verdict.kind}: {verdict.case}: {verdict.words}", file=sys.stderr)
    return exit_code(record, None if before is None else verdicts)


def works_of(suite: Suite, cases: Sequence[Case]) -> dict[str, Work | None]:
    """What each case trains on, by its full name; None for a program."""
    return {name_of(case): suite.work_of(case) if case.program is None else None for case in cases}


def refuse_incomparable(
    before: dict[str, Any], here: dict[str, Any], suite: Suite, cases: Sequence[Case]
) -> None:
    """Raise ConfigError where not one case can be held against `before`: sooner than after minutes of measuring."""
    works = works_of(suite, cases)
    found = obstacles(before, here, works)
    if len(found) == len(works):
        raise ConfigError(
            [
                *(f"case {name!r} cannot be compared: {why}." for name, why in found.items()),
                "so none is left to compare: give a record of this suite on this machine, or leave out --compare.",
            ],
            source="megatune bench --compare",
        )


def exit_code(record: dict[str, Any], verdicts: Sequence[Verdict] | None) -> int:
    """75: cut off. 1: a case failed or is slower than before. 2: one must not be compared, or none was. Else 0."""
    if record["cut_off"]:
        return STOPPED_BUT_SAVED
    if any(case["failure"] for case in record["cases"]):
        return 1
    kinds = {verdict.kind for verdict in verdicts or ()}
    if "slower" in kinds:
        return 1
    return 0 if verdicts is None or ("not slower" in kinds and "refused" not in kinds) else 2


def chosen(suite: Suite, patterns: tuple[str, ...]) -> list[Case]:
    """The cases whose full name matches one of `patterns` (shell wildcards); all without any."""
    cases = suite.expanded()
    if not cases:
        raise ConfigError(
            ["no case of the suite can run here: all need more devices than this machine has."],
            source="megatune bench",
        )
    if not patterns:
        return list(cases)
    found = [case for case in cases if any(fnmatch(name_of(case), pattern) for pattern in patterns)]
    if not found:
        names = ", ".join(repr(name_of(case)) for case in cases)
        raise ConfigError(
            [f"--only {', '.join(patterns)} matches no case of the suite. Cases: {names}."],
            source="megatune bench",
        )
    return found


def tables(record: dict[str, Any]) -> Iterator[Any]:
    """A row a case that trained, with its ratio to the baseline; and what programs printed."""
    against = f" / {record['baseline']}" if record["baseline"] else ""
    return render_tables(record, list(_rows(record, against)))


def _rows(record: dict[str, Any], against: str) -> Iterator[dict[str, Any]]:
    for case in record["cases"]:
        row: dict[str, Any] = {"case": case["name"]}
        if case["failure"]:
            yield {**row, "engine": f"failed: {case['failure'].splitlines()[0]}"}
        elif "printed" not in case:
            ratio = case["to_baseline"]
            yield {
                **row,
                "tokens/s": _spread(case["tokens_per_second"]),
                "CPU ms/token": _spread(case["cpu_seconds_per_token"], 1e3),
                "peak memory": peak_words(case),
                **({f"tokens/s{against}": _ratio(ratio, "tokens_per_second")} if against else {}),
                **({f"CPU{against}": _ratio(ratio, "cpu_seconds_per_token")} if against else {}),
                "engine": what_ran(case) if not isinstance(ratio, str) else ratio,
            }


def _spread(values: dict[str, float], scale: float = 1.0) -> str:
    return str(Spread(**{key: value * scale for key, value in values.items()}))


def _ratio(ratio: dict[str, Any] | str | None, key: str) -> str:
    return str(Spread(**ratio[key])) if isinstance(ratio, dict) else "n/a" if ratio else "1"
