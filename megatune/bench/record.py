"""The record of one run of a suite: everything another person needs to judge its figures."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatune.bench.compare import Ratio, Spread, loosely_held, ratio_to
from megatune.bench.peaks import measure_peaks
from megatune.bench.roofline import ranks_computing
from megatune.bench.rounds import Result, name_of
from megatune.bench.suite import Suite
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.devices import count_cpus, count_gpus, cpu_model, host_memory_bytes, query_gpus
from megatune.launch.environment import source_commit
from megatune.report.tables import to_json
from megatune.units import format_bytes, format_count

SCHEMA = 2
_READ = (1, 2)
"""1 had one peak, of what the device held, and no word on whether a signal had ended it."""
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes")
FORMULAS = {"mfu": "PaLM: 6 N_matmul + 12 L h s (docs/plan.md)"}
_PACKAGES = (
    "megatune",
    "torch",
    "deepspeed",
    "transformers",
    "accelerate",
    "torchtitan",
    "liger-kernel",
    "flash-attn",
)


def make_record(
    suite_name: str,
    suite: Suite,
    results: list[Result],
    rounds: int,
    *,
    cut_off: str | None = None,
    node_links: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The record as one JSON object. cut_off: the signal that ended the suite early; no time goes into peaks then.

    node_links: what was measured between the nodes of a job, by `measure_links`.
    """
    here = machine()
    numbers = [] if cut_off else _numbers_of_ranks(results, here)
    peaks = [found for number in numbers if (found := measure_peaks(number))]
    measured = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": here,
        "peaks": peaks[0] if peaks else None,
        "other_peaks": peaks[1:],
        "node_links": list(node_links),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": source_commit(),
    }
    return record_of(suite_name, suite, results, rounds, measured, cut_off)


def record_of(
    suite_name: str,
    suite: Suite,
    results: list[Result],
    rounds: int,
    measured: Mapping[str, Any],
    cut_off: str | None = None,
) -> dict[str, Any]:
    """The record of `results`; `measured` is what is known of the machine and the program."""
    return {
        "schema": SCHEMA,
        "suite": suite_name,
        "about": suite.about,
        **measured,
        "formulas": FORMULAS,
        "rounds": rounds,
        "cut_off": cut_off,
        "baseline": suite.baseline,
        "cases": [_case(suite, result, results) for result in results],
    }


def _numbers_of_ranks(results: list[Result], machine: dict[str, Any]) -> list[int]:
    """That compute at once on a machine in the cases that train, the largest first."""
    works = [result.work for result in results if result.work and result.measurements]
    numbers = {ranks_computing(work.ranks // (work.nodes or 1), machine) for work in works}
    return sorted(numbers, reverse=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {
        "cpu": cpu_model(),
        "cpu_cores": count_cpus(),
        "host_memory_bytes": host_memory_bytes(),
        "gpus": gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1_5_15_min": [round(load, 2) for load in os.getloadavg()],
    }


def gpus() -> list[dict[str, str]]:
    """Name, memory and power limit of each GPU, as nvidia-smi tells them."""
    number = count_gpus()
    if not number:
        return []
    told = query_gpus(("name", "memory.total", "power.limit", "driver_version"), units=True)
    return told or [{"name": "n/a"} for _ in range(number)]


def save_record(record: dict[str, Any], folder: Path) -> Path:
    """Write it as SUITE-DEVICE.json, in place of an older one of the same machine.

    One that was cut off goes beside it, as SUITE-DEVICE-cut-off.json.
    """
    found = record["machine"]["gpus"]
    device = found[0]["name"] if found else record["machine"]["cpu"] or "cpu"
    name = "-".join("".join(char if char.isalnum() else " " for char in device).lower().split())
    folder.mkdir(parents=True, exist_ok=True)
    end = "-cut-off" if record.get("cut_off") else ""
    path = folder / f"{record['suite']}-{name}{end}.json"
    write_text_atomic(path, to_json(record) + "\n")
    return path


def read_record(path: Path) -> dict[str, Any]:
    """A record that `save_record` wrote, in today's form. Raises ConfigError for any other file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] not in _READ or not isinstance(record["cases"], list):
            raise ValueError(f"its schema is {record['schema']}, this version reads {SCHEMA} and older ones")
    except OSError as error:
        raise ConfigError(
            [
                f"cannot be read: {error.strerror}. `megatune bench` says at its end where it wrote its record."
            ],
            source=str(path),
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError([f"it is no record of `megatune bench`: {why}."], source=str(path)) from error
    return _from_schema_1(record) if record["schema"] == 1 else dict(record)


def _from_schema_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Its one peak was allocated memory on a GPU and resident memory on a CPU."""
    known = PEAKS[0] if record["machine"]["gpus"] else PEAKS[2]

    def renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
        if "peak_memory_bytes" not in entry:
            return dict(entry)
        rest = {key: value for key, value in entry.items() if key != "peak_memory_bytes"}
        return {**rest, **dict.fromkeys(PEAKS), known: entry["peak_memory_bytes"]}

    cases = [
        {**renamed(case), **({"runs": [renamed(run) for run in case["runs"]]} if "runs" in case else {})}
        for case in record["cases"]
    ]
    return {**record, "schema": SCHEMA, "cut_off": None, "cases": cases}


def peak_words(case: Mapping[str, Any]) -> str:
    """The memory that a case of a record held, and which kind: reserved memory stands beside allocated."""
    allocated, reserved, rss = (case.get(name) for name in PEAKS)
    if allocated is None:
        return "n/a" if rss is None else f"{format_bytes(rss)} RSS"
    beside = "" if reserved is None else f" ({format_bytes(reserved)} reserved)"
    return f"{format_bytes(allocated)} allocated{beside}"


def engine_of(case: Mapping[str, Any]) -> str:
    """What trained a case of a record, and the model where it was chosen for its size."""
    largest = case.get("largest")
    if largest is None:
        return str(case["engine"])
    model = f"{case['work']['model']}, {format_count(largest['num_params'])} parameters"
    return f"{model} ({format_bytes(largest['planned_peak_bytes'])} planned): {case['engine']}"


def what_ran(case: Mapping[str, Any]) -> str:
    """`engine_of`, and how loosely the losses of a case were held to others where that was so."""
    ratio = case["to_baseline"]
    loosely = ratio.get("losses") if isinstance(ratio, dict) else None
    return "; ".join(filter(None, (engine_of(case), loosely)))


def _case(suite: Suite, result: Result, results: list[Result]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name_of(result.case), "failure": result.failure}
    if result.programs:
        return {**entry, "program": list(result.case.program or ()), "printed": result.programs}
    if not result.measurements:
        return entry
    return {
        **entry,
        "work": result.work.model_dump() if result.work else None,
        "engine": result.measurements[-1].engine,
        "largest": _largest(result),
        "tokens_per_second": vars(Spread.of([m.tokens_per_second for m in result.measurements])),
        "cpu_seconds_per_token": vars(Spread.of([m.cpu_seconds_per_token for m in result.measurements])),
        **{name: _most(getattr(one, name) for one in result.measurements) for name in PEAKS},
        "to_baseline": _to_baseline(suite, result, results),
        "runs": [measurement.to_object() for measurement in result.measurements],
    }


def _most(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _largest(result: Result) -> dict[str, Any] | None:
    chosen = result.largest
    if chosen is None:
        return None
    return {"num_params": chosen.num_params, "planned_peak_bytes": chosen.planned_peak_bytes}


def _to_baseline(suite: Suite, result: Result, results: list[Result]) -> dict[str, Any] | str | None:
    baseline, reference = (
        next(
            (one for one in results if one.case.name == name and one.case.group == result.case.group),
            None,
        )
        for name in (suite.baseline, suite.losses_of)
    )
    if suite.baseline is None or baseline is result:
        return None
    if baseline is None:
        return f"no {suite.baseline} was run beside it"
    ratio = ratio_to(baseline, result, reference)
    if not isinstance(ratio, Ratio):
        return ratio
    return {
        "tokens_per_second": vars(ratio.tokens_per_second),
        "cpu_seconds_per_token": vars(ratio.cpu_seconds_per_token),
        "peak_memory": ratio.peak_memory,
        "losses": suite.losses_of and loosely_held(baseline, result, reference, suite.losses_of),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
