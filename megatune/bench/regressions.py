"""A record beside an older one: what has become slower, and what must not be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from megatune.bench.compare import Spread
from megatune.bench.suite import LARGEST, Work
from megatune.report.losses import LOSS_TOLERANCE, first_difference

_GPU_FIELDS = ("name", "memory.total", "power.limit")
"""What makes two GPUs the same device: a lower limit of power is another speed."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What two records say of one case."""

    case: str
    kind: Literal["slower", "not slower", "refused", "left out"]
    """refused: both measured it, on another device, at other work, or with other losses. left out: one of them has no
    measurement of it."""
    words: str
    ratio: float | None = None
    """Time a token, of the new record over that of the old one."""


def compare_records(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for each case of either record."""
    older = {case["name"]: case for case in before["cases"]}
    newer = {case["name"]: case for case in now["cases"]}
    apart = device_difference(before["machine"], now["machine"])
    on_gpu = bool(now["machine"]["gpus"])
    found = [_verdict(name, older.get(name), case, apart, on_gpu) for name, case in newer.items()]
    gone = [name for name in older if name not in newer]
    return found + [Verdict(case=name, kind="left out", words="only in the other record") for name in gone]


def obstacles(
    before: Mapping[str, Any], machine: Mapping[str, Any], works: Mapping[str, Work | None]
) -> dict[str, str]:
    """Why cases that are about to run cannot be compared with `before`, by name; those that can are not in it.

    works: of each case; None for one that is no training.
    """
    older = {case["name"]: case for case in before["cases"]}
    apart = device_difference(before["machine"], machine)
    whys = {
        name: _absence(older.get(name), "the other record")
        or ("a program prints its own figures" if work is None else None)
        or apart
        or (None if work is None else _work_difference(older[name]["work"], work.model_dump()))
        for name, work in works.items()
    }
    return {name: why for name, why in whys.items() if why is not None}


def device_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why figures of two machines are not compared; None for the same kind of device."""
    devices = [_device(machine) for machine in (now, before)]
    if None in devices:
        return f"the device of {'this record' if devices[0] is None else 'the other record'} is not known"
    return None if devices[0] == devices[1] else f"it ran on {devices[0]}, the other on {devices[1]}"


def _device(machine: Mapping[str, Any]) -> str | None:
    """In words; None where nobody says."""
    gpus = machine["gpus"]
    if not gpus:
        return machine["cpu"] and f"{machine['cpu']}, {machine['cpu_cores']} cores"
    if any(gpu["name"] == "n/a" for gpu in gpus):
        return None
    kinds = {", ".join(gpu[key] for key in _GPU_FIELDS if key in gpu) for gpu in gpus}
    return " and ".join(sorted(kinds))


def _verdict(
    name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any], apart: str | None, on_gpu: bool
) -> Verdict:
    absent = _absence(new, "this record") or _absence(old, "the other record")
    if absent is not None:
        return Verdict(case=name, kind="left out", words=absent)
    assert old is not None, "absent otherwise"
    refused = apart or _work_difference(old["work"], new["work"]) or _loss_difference(old, new)
    if refused is None:
        refused = _without_spread(new, "this record") or _without_spread(old, "the other record")
    if refused is not None:
        return Verdict(case=name, kind="refused", words=refused)
    return _timed(name, old["runs"], new["runs"], on_gpu)


def _absence(case: Mapping[str, Any] | None, where: str) -> str | None:
    """Why a record has no measured steps of a case."""
    if case is None:
        return f"not in {where}"
    if case.get("failure") and not case.get("runs"):
        return f"failed in {where}"
    return None if case.get("runs") else "a program prints its own figures"


def _work_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    try:
        theirs = Work.model_validate(old).model_dump()  # an older record lacks keys that have come since
    except ValidationError:
        theirs = dict(old)
    is_open = {"model"} if new["model"] == LARGEST else set()  # which one that is shows when the case runs
    keys = [key for key in new if new[key] != theirs.get(key) and key not in is_open]
    told = ", ".join(f"{key} {new[key]} beside {theirs.get(key)}" for key in keys)
    return f"other work: {told}" if keys else None


def _loss_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    precision = new["work"]["precision"]
    for theirs, ours in ((old["runs"][0], run) for run in new["runs"]):
        found = first_difference(theirs["losses"], ours["losses"], precision)
        if found is not None:
            step, a, b = found
            return f"other losses: step {step} has {b} beside {a}, more than {LOSS_TOLERANCE[precision]:g} of it apart"
    return None


def _without_spread(case: Mapping[str, Any], where: str) -> str | None:
    """Why what `where` has of a case shows no spread: neither of rounds nor of steps."""
    if max(len(case["runs"]), len(case["runs"][0]["tokens"])) > 1:
        return None
    return f"{where} has one step of one round, which has no spread: make it with --rounds 2"


def _timed(
    name: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], on_gpu: bool
) -> Verdict:
    """Slower is what lies beyond both spreads: of rounds, or of single steps where one of them has one round."""
    key, what = ("step_seconds", "time") if on_gpu else ("cpu_seconds", "processor time")
    by_step = min(len(old), len(new)) < 2
    theirs, ours = (_a_token(runs, key, by_step) for runs in (old, new))
    slower = ours.low > theirs.high
    ratio = ours.median / theirs.median
    scatter = "steps" if by_step else "rounds"
    return Verdict(
        case=name,
        kind="slower" if slower else "not slower",
        words=f"{100 * (ratio - 1):+.1f} % {what} a token ({_ms(ours)} ms beside {_ms(theirs)}, spread of {scatter})",
        ratio=ratio,
    )


def _a_token(runs: Sequence[Mapping[str, Any]], key: str, by_step: bool) -> Spread:
    if not by_step:
        return Spread.of([sum(run[key]) / sum(run["tokens"]) for run in runs])
    steps = [pair for run in runs for pair in zip(run[key], run["tokens"], strict=True)]
    return Spread.of([seconds / tokens for seconds, tokens in steps])


def _ms(spread: Spread) -> Spread:
    return Spread(median=1e3 * spread.median, low=1e3 * spread.low, high=1e3 * spread.high)
