"""What a run achieved, read from its metrics.jsonl."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from megatune.report.estimate import Comparison, compare, comparison_table
from megatune.report.goodput import Goodput, goodput, goodput_facts
from megatune.report.metrics import read_metrics
from megatune.report.tables import format_cell, render_table
from megatune.units import format_bytes, format_count, format_duration


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One score of a split before training and at its latest evaluation; None is unknown."""

    before: float | None
    after: float | None
    interval_before: tuple[float, float] | None = None
    """The middle 95 % of bootstrap samples of the rows."""
    interval_after: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One evaluated split before this run's first step, and the model that it ended with, or else the latest one.

    None is unknown.
    """

    split: str
    loss_before: float | None
    loss_after: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    step_after: int | None
    is_comparable: bool = True
    """False where the scores before are of other rows, or of rows that were asked otherwise."""
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)
    """The other scores, by name."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The whole run so far, resumes included. None is unknown."""

    steps: int
    skipped_steps: int
    target_tokens: int
    train_seconds: float
    first_loss: float | None
    last_loss: float | None
    median_tokens_per_second: float | None
    median_tokens_per_second_per_device: float | None
    peak_memory_bytes: int | None
    """The largest of any rank at any time."""
    peak_memory_bytes_by_rank: tuple[int | None, ...]
    """Of the latest start that ended; empty when none did."""
    num_starts: int
    stop_reason: str | None
    model_step: int | None
    """The step of the model that is the result of a run that has ended."""
    splits: tuple[SplitSummary, ...]
    faults: Mapping[str, int]
    """How often each remedy was used against a bad step."""
    slow_ranks: Mapping[str, int]
    """Rank and host -> how often it was found to hold the others up."""
    goodput: Goodput | None
    planned: Comparison | None
    """The planner's estimate beside what was measured."""

    @property
    def is_earlier_model(self) -> bool:
        """Whether steps were trained after the model that is the result."""
        return self.model_step is not None and self.model_step < self.steps

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **asdict(self),
            "goodput": self.goodput.as_object() if self.goodput else None,
            "planned": self.planned.as_object() if self.planned else None,
        }


def summarise(path: Path) -> Summary:
    """The summary of a metrics file. Raises FileNotFoundError, or MegatuneError for a broken line."""
    return summarise_entries(read_metrics(path))


def summarise_entries(entries: Sequence[Mapping[str, Any]]) -> Summary:
    """The summary of the lines of a metrics file."""
    steps = [entry for entry in entries if entry["event"] == "step"]
    stops = [entry for entry in entries if entry["event"] == "stop"]
    by_rank = stops[-1].get("peak_memory_bytes_by_rank", ()) if stops else ()
    peaks = [*_column(steps, "peak_memory_bytes"), *(peak for peak in by_rank if peak is not None)]
    return Summary(
        steps=max((entry["step"] for entry in steps), default=0),
        skipped_steps=sum(bool(entry["skipped"]) for entry in steps),
        target_tokens=sum(entry["target_tokens"] for entry in steps),
        train_seconds=sum(entry["step_seconds"] for entry in steps),
        first_loss=steps[0]["loss"] if steps else None,
        last_loss=steps[-1]["loss"] if steps else None,
        median_tokens_per_second=_median(steps, "tokens_per_second"),
        median_tokens_per_second_per_device=_median(steps, "tokens_per_second_per_device"),
        peak_memory_bytes=max(peaks, default=None),
        peak_memory_bytes_by_rank=tuple(by_rank),
        num_starts=sum(entry["event"] == "run" for entry in entries),
        stop_reason=stops[-1]["reason"] if stops else None,
        model_step=_model_step(entries),
        splits=_summarise_splits(entries),
        faults=Counter(entry["remedy"] for entry in entries if entry["event"] == "fault"),
        slow_ranks=slow_ranks(entries),
        goodput=goodput(entries),
        planned=compare(entries),
    )


def slow_ranks(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """As in `Summary`, of the lines of a metrics file."""
    told = (entry for entry in entries if entry.get("event") == "slow_rank")
    return Counter(f"rank {entry['rank']} on {entry['host']}" for entry in told)


def shown_slow_ranks(found: Mapping[str, int]) -> str:
    """For people."""
    return (
        ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in found.items()) or "none"
    )


def summary_tables(summary: Summary) -> list[Table]:
    """The summary for people: held-out results first, then speed and memory."""
    results = [row for split in summary.splits for row in _result_rows(split)]
    facts = [{"": name, "value": value} for name, value in _facts(summary).items()]
    return [
        *([render_table(results)] if results else []),
        render_table(facts),
        *([comparison_table(summary.planned)] if summary.planned else []),
    ]


def _result_rows(split: SplitSummary) -> list[dict[str, Any]]:
    scores = {
        "loss": MetricSummary(before=split.loss_before, after=split.loss_after),
        "perplexity": MetricSummary(before=split.perplexity_before, after=split.perplexity_after),
        **split.metrics,
    }
    return [
        {
            "held-out split": split.split,
            "score": name,
            "before": _with_interval(score.before, score.interval_before)
            if split.is_comparable
            else "other rows",
            "after": _with_interval(score.after, score.interval_after),
        }
        for name, score in scores.items()
    ]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    around = f" ({format_cell(interval[0])} to {format_cell(interval[1])})" if interval else ""
    return format_cell(value) + around


def _facts(summary: Summary) -> dict[str, str]:
    by_rank = ", ".join(format_bytes(peak) for peak in summary.peak_memory_bytes_by_rank)
    return {
        "steps": format_cell(summary.steps),
        "skipped steps": format_cell(summary.skipped_steps),
        "training loss, first and last step": f"{_loss(summary.first_loss)} -> {_loss(summary.last_loss)}",
        "target tokens": format_count(summary.target_tokens),
        "time in steps": format_duration(summary.train_seconds),
        "tokens/s (median)": format_count(summary.median_tokens_per_second),
        "tokens/s per device (median)": format_count(summary.median_tokens_per_second_per_device),
        "peak memory of any rank": format_bytes(summary.peak_memory_bytes),
        "peak memory by rank": by_rank or "n/a",
        **goodput_facts(summary.goodput),
        "faults": ", ".join(f"{count} {remedy}" for remedy, count in summary.faults.items()) or "none",
        "slow ranks": shown_slow_ranks(summary.slow_ranks),
        "stopped because": summary.stop_reason or "n/a",
        **(
            {"the model is that of step": format_cell(summary.model_step)} if summary.is_earlier_model else {}
        ),
    }


def _model_step(entries: Sequence[Mapping[str, Any]]) -> int | None:
    """As in `Summary`; None while a later start goes on."""
    last: Mapping[str, Any] = next((one for one in reversed(entries) if one["event"] in ("run", "stop")), {})
    return last.get("model_step")


def _summarise_splits(entries: Sequence[Mapping[str, Any]]) -> tuple[SplitSummary, ...]:
    evals = [entry for entry in entries if entry["event"] == "eval"]
    # A run that begins at another run's checkpoint has a first step above 1.
    first_step = min((entry["step"] for entry in entries if entry["event"] == "step"), default=1)
    model_step = _model_step(entries)
    found = []
    for name in dict.fromkeys(entry["split"] for entry in evals):
        own = [entry for entry in evals if entry["split"] == name]
        before: Mapping[str, Any] = next((entry for entry in reversed(own) if entry["step"] < first_step), {})
        later = [entry for entry in own if entry["step"] >= first_step]
        of_model = [entry for entry in later if entry["step"] == model_step]
        after: Mapping[str, Any] = next(reversed(of_model or later), {})
        hashes = before.get("asked"), after.get("asked")
        found.append(
            SplitSummary(
                split=name,
                loss_before=before.get("loss"),
                loss_after=after.get("loss"),
                perplexity_before=before.get("perplexity"),
                perplexity_after=after.get("perplexity"),
                step_after=after.get("step"),
                is_comparable=None in hashes or len(set(hashes)) == 1,
                metrics=_summarise_metrics(before, after),
            )
        )
    return tuple(found)


def _summarise_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, MetricSummary]:
    found = [(entry.get("metrics") or {}, entry.get("intervals") or {}) for entry in (before, after)]
    (old, old_intervals), (new, new_intervals) = found
    return {
        name: MetricSummary(
            before=old.get(name),
            after=new.get(name),
            interval_before=old_intervals.get(name),
            interval_after=new_intervals.get(name),
        )
        for name in dict.fromkeys([*old, *new])
    }


def _column(entries: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [entry[name] for entry in entries if entry.get(name) is not None]


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    # The median: the first steps warm up, and a step that waits for a disk is not the speed.
    values = _column(entries, name)
    return statistics.median(values) if values else None


def _loss(loss: float | None) -> str:
    return "n/a" if loss is None else f"{loss:.4f}"
