"""How `megatune status` shows runs: a table of facts for one, a row each for several, a line when piped."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.text import Text

from megatune.launch.run_status import RunStatus, seconds_since
from megatune.report.goodput import goodput_facts
from megatune.report.summary import shown_slow_ranks
from megatune.report.tables import render_table
from megatune.units import format_count, format_duration


def show_one(status: RunStatus, now: datetime) -> list[RenderableType]:
    """Everything about one run, and why it failed if it did."""
    facts = [{"": name, "value": value} for name, value in _facts(status, now).items()]
    notes = [Text(f"note: {note}") for note in status.notes]
    digest = [Text(status.digest.text)] if status.digest else []
    # Not the table's title: that is folded to the table's width, and a path is there to be copied.
    return [Text(str(status.folder.path)), render_table(facts), *notes, *digest]


def show_many(statuses: Sequence[RunStatus]) -> list[RenderableType]:
    """A row for each run."""
    if not statuses:
        return [
            Text("no run of yours waits or runs; `megatune status --all` shows every one you have submitted")
        ]
    table = render_table([_row(status) for status in statuses])
    remarks = [Text(f"{status.folder.path}: {remark}") for status in statuses for remark in _remarks(status)]
    notes = dict.fromkeys(note for status in statuses for note in status.notes if status.jobs)
    return [table, *remarks, *(Text(f"note: {note}") for note in notes)]


def line_of(status: RunStatus) -> str:
    """A run on one line, for a pipe; equal as long as nothing but time has passed."""
    progress = status.standing
    reason = f" ({status.reason_text})" if status.reason_text else ""
    job = f" job {status.job.job_id}" if status.job else ""
    return (
        f"{status.folder.path}:{job} {_state(status)}{reason} step {_step(status)} loss {_loss(progress.loss)} "
        f"tok/s {format_count(progress.tokens_per_second)} restarts {_shown(status.restarts)} "
        f"checkpoint {_shown(status.checkpoint_step)}"
    )


def against_the_limit(status: RunStatus) -> str | None:
    """How the end of the steps lies to the job's time limit, in words; None where one of them is unknown."""
    margin = status.margin_s
    if margin is None:
        return None
    if margin >= 0:
        return f"ends {format_duration(margin)} before the limit"
    more = status.more_jobs_needed
    needs = (
        "" if more is None else f"; needs at least {more} more job{'s' if more > 1 else ''} of this length"
    )
    return f"ends {format_duration(-margin)} after the limit{needs}"


def _facts(status: RunStatus, now: datetime) -> dict[str, str]:
    progress, job = status.standing, status.job
    meaning = job.state.meaning if job and job.state else None
    nodes = None if job is None else job.nodes or (f"{job.num_nodes} asked for" if job.num_nodes else None)
    age = seconds_since(status.checkpoint_saved_at, now)
    saved = None if status.checkpoint_step is None else f"step {status.checkpoint_step}, {_ago(age)}"
    others = [f"{report.job_id} {report.state.name if report.state else 'n/a'}" for report in status.jobs]
    facts = {
        "job": job.job_id if job else None,
        "state": _state(status) + (f": {meaning}" if meaning else ""),
        "reason": status.reason_text,
        "nodes": nodes,
        "step": _step(status),
        "loss": _loss(progress.loss),
        "tokens/s": format_count(progress.tokens_per_second),
        "time for the steps left": format_duration(progress.eta_s),
        "time limit": _limit(status),
        "restarts": _shown(status.restarts),
        **goodput_facts(progress.goodput),
        "slow ranks": shown_slow_ranks(progress.slow_ranks),
        "last checkpoint": saved,
        "last record": _ago(seconds_since(progress.last_record_at, now)),
    }
    if len(others) > 1:
        facts["all jobs"] = ", ".join(others)
    return {name: _shown(value) for name, value in facts.items()}


def _row(status: RunStatus) -> dict[str, str | None]:
    progress, job = status.standing, status.job
    return {
        "run": str(status.folder.path),
        "job": job.job_id if job else None,
        "state": _state(status),
        "nodes": job.nodes if job else None,
        "step": _step(status),
        "loss": _loss(progress.loss),
        "tokens/s": format_count(progress.tokens_per_second),
        "left": format_duration(progress.eta_s),
        "restarts": _shown(status.restarts),
        "checkpoint": _shown(status.checkpoint_step),
    }


def _remarks(status: RunStatus) -> list[str]:
    """What is too long for a row: why it waits or stopped, and whether it will end in time."""
    return [remark for remark in (status.reason_text, against_the_limit(status)) if remark]


def _limit(status: RunStatus) -> str | None:
    left = status.time_left_s
    known = (None if left is None else f"{format_duration(left)} left", against_the_limit(status))
    return ", ".join(filter(None, known)) or None


def _state(status: RunStatus) -> str:
    return status.state or "n/a"


def _step(status: RunStatus) -> str:
    return f"{_shown(status.standing.step)}/{_shown(status.standing.total_steps)}"


def _loss(loss: float | None) -> str:
    return "n/a" if loss is None else f"{loss:.4f}"


def _ago(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{format_duration(seconds)} ago"


def _shown(value: object) -> str:
    return "n/a" if value is None else str(value)
