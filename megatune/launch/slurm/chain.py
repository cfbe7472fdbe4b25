"""How many jobs a run needs one after the other, when one time limit does not hold it."""

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megatune.config.fields import SlurmTime
from megatune.errors import ConfigError
from megatune.launch.slurm.quantities import parse_limit_s
from megatune.report.metrics import read_metrics
from megatune.report.standing import Standing, standing

START_UP_S = 120
"""Taken off each job of a chain: loading libraries, model and checkpoint, before the first step."""
_MAX_JOBS = 100
_TIME = TypeAdapter(SlurmTime)  # the forms of Slurm's time limits, for the ETA too


@dataclass(frozen=True, kw_only=True)
class Eta:
    """Time that a run still needs, and who says so."""

    seconds: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How many jobs, and why."""

    num_jobs: int
    reason: str


def choose_chain(asked: str, *, eta: Eta | None, limit_s: int | None, signal_delay_s: int) -> Chain:
    """The chain that `--chain` asks for: a number, or `auto` for as many jobs as the ETA needs.

    Raises ConfigError, saying what to give, when `auto` cannot be worked out.
    """
    if asked != "auto":
        if not asked.isascii() or not asked.isdigit() or not 1 <= int(asked) <= _MAX_JOBS:
            raise ConfigError(
                [f"--chain is {asked!r}; it must be auto, or a number from 1 to {_MAX_JOBS}."],
                source="--chain",
            )
        return Chain(num_jobs=int(asked), reason="as asked")
    problems = []
    if eta is None:
        problems.append(
            "--chain auto needs the time of the whole run: give --eta HH:MM:SS; or start the run once, so that "
            "its metrics.jsonl says how long a step takes; or give train.max_steps, and gpu in the site profile, so "
            "that the planner can say it."
        )
    if limit_s is None:
        problems.append("--chain auto needs the time limit of a job: give slurm.time.")
    if eta is None or limit_s is None:
        raise ConfigError(problems, source="--chain")
    return _for_eta(eta, limit_s, signal_delay_s)


def _for_eta(eta: Eta, limit_s: int, signal_delay_s: int) -> Chain:
    useful_s = limit_s - signal_delay_s - START_UP_S
    if useful_s <= 0:
        raise ConfigError(
            [
                f"a job of {limit_s} s has no time to train: slurm.signal_delay_s is {signal_delay_s}, and starting "
                f"takes about {START_UP_S} s. Ask for a longer slurm.time."
            ],
            source="--chain",
        )
    num_jobs = max(1, math.ceil(eta.seconds / useful_s))
    reason = (
        f"{eta.seconds:.0f} s are left to train, {eta.source}; a job of {limit_s} s trains for {useful_s} s "
        f"({signal_delay_s} s to stop, {START_UP_S} s to start)"
    )
    if num_jobs > _MAX_JOBS:
        raise ConfigError([f"{reason}: {num_jobs} jobs, above the limit of {_MAX_JOBS}."], source="--chain")
    return Chain(num_jobs=num_jobs, reason=reason)


def eta_of(text: str | None, known: Standing, planned_s: float | None) -> Eta | None:
    """What the run still needs: as the user says, else by its earlier steps, else by the planner's forecast.

    planned_s: the forecast of the steps left. Raises ConfigError when `text` is no time.
    """
    if text is None and known.eta_s is not None:
        return Eta(seconds=known.eta_s, source="by the steps of an earlier start")
    if text is None:
        return None if planned_s is None else Eta(seconds=planned_s, source="by the planner's forecast")
    try:
        seconds = parse_limit_s(_TIME.validate_python(text))
    except ValidationError:
        seconds = None
    if seconds is None:
        raise ConfigError(
            [f"--eta is {text!r}; it must be HH:MM:SS, D-HH:MM:SS, or minutes."], source="--eta"
        )
    return Eta(seconds=float(seconds), source="by --eta")


def standing_of(metrics: Path) -> Standing:
    """How far an earlier start of the run has come; nothing known without one."""
    return standing(read_metrics(metrics)) if metrics.is_file() else Standing()
