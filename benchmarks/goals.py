"""The goals of the CPU suites, and what the newest records say of them: `python benchmarks/goals.py [RESULTS]`.

Ratios are between cases of one record. Tokens a second are wall time, which means little where the cores were shared:
the ratio of processor time a token stands beside each.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.bench.figures import training_cases

HF = "HF Trainer + deepspeed zero3"


@dataclass(frozen=True)
class Goal:
    """`case` divided by `beside`, in a group of a suite."""

    what: str
    suite: str
    group: str
    case: str
    beside: str
    key: str
    """tokens_per_second, where more is better, or cpu_seconds_per_token."""
    reach: float
    stretch: float | None


SIZES = (("", "17 M"), ("-135m", "135 M"))
"""What the suite of a model is called after its first name, and how large the model is."""
PRECISIONS = ("fp32", "bf16")

GOALS = [
    *(
        Goal(f"tokens/s, mixed lengths, packed / padded HF Trainer, {size} {precision}", f"mixed{model}",
             f"precision={precision}", "megatune zero3 packed", f"{HF}, padded", "tokens_per_second", 2.0, 3.0)
        for model, size in SIZES for precision in PRECISIONS
    ),
    *(
        Goal(f"CPU a step / HF Trainer, same packed tokens, {size} {precision}", f"peers{model}",
             f"precision={precision}", "megatune zero3", HF, "cpu_seconds_per_token", 0.80, 0.65)
        for model, size in SIZES for precision in PRECISIONS
    ),
    *(
        Goal(f"tokens/s / FSDP2, {size} {precision}", suite, f"precision={precision}",
             "megatune zero3", "fsdp2", "tokens_per_second", reach, stretch)
        for suite, size, reach, stretch in (("peers", "17 M", 1.0, 1.2), ("peers-135m", "135 M", 1.15, 1.4))
        for precision in PRECISIONS
    ),
    *(
        Goal(f"CPU a step / floor without communication, {size} bf16", suite, "precision=bf16",
             "megatune zero3", "floor", "cpu_seconds_per_token", 1.6, 1.3)
        for suite, size in (("peers", "17 M"), ("peers-135m", "135 M"))
    ),
    *(
        Goal(f"TP=2, tokens/s / DTensor TP=2, {size} {precision}", suite, f"precision={precision}",
             "megatune tp=2", "dtensor tp=2", "tokens_per_second", 1.25, 1.5)
        for suite, size in (("peers", "17 M"), ("tensor-parallel-135m", "135 M")) for precision in PRECISIONS
    ),
]  # fmt: skip


@dataclass(frozen=True)
class ShareGoal:
    """How much of the measured products of all ranks a case of the suite peak-share reaches."""

    what: str
    case: str
    reach: float
    stretch: float


SHARE_GOALS = [
    ShareGoal(
        "135 M, bf16, 1,024 tokens a step: share of the measured products, dp=2", "megatune, dp=2", 0.30, 0.40
    ),
    ShareGoal("the same, dp=2 x tp=2 on two cores", "megatune, dp=2 tp=2", 0.24, 0.32),
]


def newest(results: Path, suite: str) -> dict[str, Any] | None:
    """The whole record of a suite that was made last, of whatever machine."""
    records = [json.loads(path.read_text()) for path in results.glob(f"{suite}-*.json")]
    whole = [record for record in records if record["suite"] == suite and not record.get("cut_off")]
    return max(whole, key=lambda record: record["time"], default=None)  # ISO 8601, in UTC


def ratio(record: dict[str, Any], goal: Goal, key: str) -> float | None:
    """None where one of the two did not run."""
    cases = {case["name"]: case for case in record["cases"]}
    pair = [cases.get(f"{name} ({goal.group})", {}).get(key) for name in (goal.case, goal.beside)]
    return None if None in pair else pair[0]["median"] / pair[1]["median"]


def row(goal: Goal, results: Path) -> str:
    """One line of the table."""
    record = newest(results, goal.suite)
    found = None if record is None else ratio(record, goal, goal.key)
    cpu = None if record is None else ratio(record, goal, "cpu_seconds_per_token")
    more_is_better = goal.key == "tokens_per_second"
    sign = "≥" if more_is_better else "≤"
    shown = "n/a" if found is None else f"{found:.2f} x"
    cpu_shown = "n/a" if cpu is None else f"{cpu:.2f} x"
    stretch = "" if goal.stretch is None else f", {goal.stretch:g}"
    told = verdict(found, goal.reach, goal.stretch, more_is_better=more_is_better)
    return f"| {goal.what} | {sign} {goal.reach:g}{stretch} | {shown} | {cpu_shown} | {told} |"


def verdict(found: float | None, reach: float, stretch: float | None, *, more_is_better: bool) -> str:
    """What a figure says of its goal, in words."""
    if found is None:
        return "not measured"
    limits = [limit for limit in (reach, stretch) if limit is not None]
    met = sum((found >= limit) if more_is_better else (found <= limit) for limit in limits)
    return ("missed", "reached", "stretch reached")[met]


def share_row(goal: ShareGoal, results: Path) -> str:
    """One line of the table."""
    record = newest(results, "peak-share")
    cases = {} if record is None else {case.name: case for case in training_cases(record)}
    share = cases[goal.case].peak_share if goal.case in cases else None
    told = verdict(share, goal.reach, goal.stretch, more_is_better=True)
    shown = "n/a" if share is None else f"{share:.0%}"
    return f"| {goal.what} | ≥ {goal.reach:.0%}, {goal.stretch:.0%} | {shown} | n/a | {told} |"


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    if not results.is_dir():
        sys.exit(f"goals.py: {results} is no folder; `megatune bench peers --results {results}` writes one")
    print("| what | reach, stretch | measured | CPU a token | |\n|---|---|---|---|---|")
    for goal in GOALS:
        print(row(goal, results))
    for share_goal in SHARE_GOALS:
        print(share_row(share_goal, results))


if __name__ == "__main__":
    main()
