"""How much of a run's time went into steps that count, from its metrics.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from megatune.units import format_duration

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds from the beginning of the first start to the last line, and what they went into."""

    elapsed_s: float
    train_s: float
    """Steps that count: taken, and not done again later."""
    startup_s: float
    """Meeting and opening the data, on the first rank; imports are in `down_s` or before the beginning."""
    load_s: float
    """Building model and engine, and loading a checkpoint."""
    eval_s: float
    save_s: float
    """What training waited for saves."""
    lost_s: float
    """Steps, evaluations and saves that were done again or left out, and skipped steps."""
    down_s: float
    """Between the last line of one start and the next start: in a queue, or nobody started it."""
    restarts: int
    lost_steps: int

    @property
    def effective_ratio(self) -> float | None:
        """Share of the elapsed time that went into steps that count; None when no time has passed."""
        return self.train_s / self.elapsed_s if self.elapsed_s > 0 else None

    @property
    def other_s(self) -> float:
        """What is in none of the parts."""
        parts = (
            self.train_s,
            self.startup_s,
            self.load_s,
            self.eval_s,
            self.save_s,
            self.lost_s,
            self.down_s,
        )
        return max(0.0, self.elapsed_s - sum(parts))

    def parts(self) -> dict[str, float]:
        """Seconds by what they went into; their sum is the elapsed time."""
        return {
            "train": self.train_s,
            "start-up": self.startup_s,
            "load": self.load_s,
            "eval": self.eval_s,
            "save": self.save_s,
            "lost": self.lost_s,
            "between starts": self.down_s,
            "other": self.other_s,
        }

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "effective_ratio": self.effective_ratio,
            "elapsed_s": self.elapsed_s,
            "parts_s": self.parts(),
            "restarts": self.restarts,
            "lost_steps": self.lost_steps,
        }


def time_taken(entry: Entry) -> float:
    """Seconds of training time that went into what the line tells of; behind training, a save takes few."""
    for key in ("step_seconds", "blocked_seconds", "seconds"):
        if entry.get(key) is not None:
            return float(entry[key])
    return 0.0


def goodput_facts(found: Goodput | None) -> dict[str, str]:
    """Rows for people."""
    if found is None:
        return {"effective training time": "n/a"}
    ratio = found.effective_ratio
    shown = "n/a" if ratio is None else f"{ratio:.1%} of {format_duration(found.elapsed_s)}"
    rest = [f"{name} {format_duration(value)}" for name, value in found.parts().items() if value >= 0.5]
    return {
        "effective training time": shown,
        "where the time went": ", ".join(rest) or "n/a",
        "starts after the first": str(found.restarts),
        "lost steps": str(found.lost_steps),
    }


def goodput(entries: Sequence[Entry]) -> Goodput | None:
    """The goodput of the lines of a metrics file; None without the beginning of a start that says its time."""
    starts = _starts(entries)
    spans = [_span(start) for start in starts]
    known = [span for span in spans if span is not None]
    if not known or len(known) < len(spans):
        return None
    ends = [_end_with_what_was_lost(known, starts, index) for index in range(len(known))]
    down = sum(max(0.0, begin - end) for (begin, _), end in zip(known[1:], ends[:-1], strict=True))
    steps = [entry for entry in entries if entry.get("event") == "step"]
    skipped_s = _sum([entry for entry in steps if entry.get("skipped")], "step_seconds")
    runs, lost = _of(entries, "run"), _of(entries, "lost")
    return Goodput(
        elapsed_s=max(ends) - known[0][0],
        train_s=_sum(steps, "step_seconds") - skipped_s,
        startup_s=_sum(runs, "startup_seconds"),
        load_s=_sum(runs, "load_seconds") + _sum(_of(entries, "resume"), "seconds"),
        eval_s=_sum(_of(entries, "eval"), "seconds"),
        save_s=sum(map(time_taken, [*_of(entries, "save"), *_of(entries, "save_failed")]), 0.0),
        lost_s=_sum(lost, "seconds") + skipped_s,
        down_s=down,
        restarts=len(starts) - 1,
        lost_steps=sum(entry.get("steps", 0) for entry in lost),
    )


def _starts(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The lines of each start, its run record first."""
    found: list[list[Entry]] = []
    for entry in entries:
        if entry.get("event") == "run":
            found.append([entry])
        elif found:
            found[-1].append(entry)
    return found


def _span(start: Sequence[Entry]) -> tuple[float, float] | None:
    """Beginning and last line of a start, in seconds since 1970."""
    times = [moment for entry in start if (moment := _seconds(entry.get("time"))) is not None]
    told = _seconds(start[0].get("time"))
    if told is None:
        return None
    before_s = (start[0].get("startup_seconds") or 0.0) + (start[0].get("load_seconds") or 0.0)
    return told - before_s, max(times)


def _end_with_what_was_lost(
    spans: Sequence[tuple[float, float]], starts: Sequence[Sequence[Entry]], index: int
) -> float:
    """When start `index` ended. The next one may have taken its last lines away, and says when they ended."""
    begin, end = spans[index]
    if index + 1 == len(spans):
        return end
    next_begin = spans[index + 1][0]
    told = (_seconds(entry.get("until")) for entry in _of(starts[index + 1], "lost"))
    return max([end, *(until for until in told if until is not None and begin <= until <= next_begin)])


def _of(entries: Sequence[Entry], event: str) -> list[Entry]:
    return [entry for entry in entries if entry.get("event") == event]


def _sum(entries: Sequence[Entry], key: str) -> float:
    return sum((entry.get(key) or 0.0 for entry in entries), 0.0)


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
