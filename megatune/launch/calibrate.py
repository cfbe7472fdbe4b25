"""`megatune plan --calibrate`: the planner's constants, fitted to runs that were measured, kept for their place."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatune.config import Run, load_run
from megatune.errors import ModelError, PlanError
from megatune.launch.measurements import calibration_file, measured_for, place_of
from megatune.launch.run_folder import RunFolder
from megatune.plan.assess import Question, timed
from megatune.plan.calibration import (
    Calibration,
    Constants,
    fit_constants,
    relative_errors,
    write_calibration,
)
from megatune.plan.ds_config import read_policy
from megatune.plan.hardware import find_accelerator
from megatune.plan.layout import Layout
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, layout_of, make_question
from megatune.plan.rates import Rates, slowed, sustained_flops
from megatune.report.metrics import WARMUP_STEPS, read_metrics, settled_steps

_FEWEST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One run, with what it took."""

    folder: Path
    place: str
    device: str
    """A name of the hardware table, or cpu."""
    question: Question
    layout: Layout
    step_s: float
    """Median after warm-up."""
    num_steps: int
    framework_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The constants of one kind of device at one place."""

    place: str
    calibration: Calibration
    runs: Sequence[MeasuredRun]
    predicted_s: Sequence[float]
    """Each run's step with them."""


def calibrate(folders: Iterable[Path]) -> list[Fitted]:
    """Fit the runs, those of each place, device and precision together, and keep what came out.

    Raises PlanError that names every folder that cannot be used, and why.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except (PlanError, ModelError) as error:
            problems.append(f"{folder}: {error}")
    if problems:
        raise PlanError("cannot calibrate with these runs:\n" + "\n".join(f"  {text}" for text in problems))
    groups: dict[tuple[str, str, str], list[MeasuredRun]] = {}
    for run in runs:
        groups.setdefault((run.place, run.device, run.question.work.precision), []).append(run)
    found = [_fit(members) for members in groups.values()]
    for fitted in found:
        write_calibration(calibration_file(), fitted.place, fitted.calibration)
    return found


def read_run(folder: Path) -> MeasuredRun:
    """What a run folder says. Raises PlanError or ModelError when it cannot be predicted or was not measured."""
    paths = RunFolder(folder)
    if not paths.run_file.is_file() or not paths.metrics.is_file():
        raise PlanError("it is no run folder with run.yaml and metrics.jsonl; give a train.output_dir.")
    run = load_run(paths.run_file).run
    entries = read_metrics(paths.metrics)
    start = next((entry for entry in reversed(entries) if entry["event"] == "run"), None)
    if start is None or not start.get("world_size") or not start.get("device"):
        raise PlanError(f"{paths.metrics.name} holds no start of a run.")
    seconds = [float(step["step_seconds"]) for step in settled_steps(entries)]
    if len(seconds) < _FEWEST_STEPS:
        raise PlanError(
            f"it has {len(seconds)} steps behind the first {WARMUP_STEPS} of each start; {_FEWEST_STEPS} are needed."
        )
    device, machine = _machine(run, start)
    question = make_question(run, read_model_config(run), machine, read_policy(run.deepspeed))
    memory = [entry for entry in entries if entry["event"] == "memory" and entry.get("framework")]
    return MeasuredRun(
        folder=folder,
        place=place_of(run),
        device=device,
        question=question,
        layout=layout_of(run, machine.num_devices),
        step_s=statistics.median(seconds),
        num_steps=len(seconds),
        framework_bytes=memory[-1]["framework"] if memory and device == "cpu" else None,
    )


def _machine(run: Run, start: Mapping[str, Any]) -> tuple[str, Machine]:
    accelerator = None if start["device"] == "cpu" else find_accelerator(start["device"])
    if accelerator is None and start["device"] != "cpu":
        raise PlanError(f"it ran on {start['device']}, which the hardware table does not have.")
    device = accelerator.name if accelerator else "cpu"
    nodes = start.get("num_nodes") or 1
    machine = Machine(
        nodes=nodes,
        ranks_per_node=start["world_size"] // nodes,
        accelerator=accelerator,
        measured=measured_for(run, device=device),
        needs_limit=False,
    )
    return device, machine


def _fit(runs: Sequence[MeasuredRun]) -> Fitted:
    measured = [run.step_s for run in runs]
    starting = [_rates(run) for run in runs]
    first = Constants(compute_factor=1.0, gather_overhead_s=starting[0].device.speeds.gather_overhead_s)

    def predict(constants: Constants) -> list[float]:
        return [
            timed(run.question, run.layout, slowed(rates, constants)).total_s
            for run, rates in zip(runs, starting, strict=True)
        ]

    constants = fit_constants(predict, measured, first)
    predicted = predict(constants)
    known_before = [run.question.rates() for run in runs]
    before = [
        timed(run.question, run.layout, rates).total_s / run.step_s - 1
        for run, rates in zip(runs, known_before, strict=True)
        if rates is not None
    ]
    frameworks = [run.framework_bytes for run in runs if run.framework_bytes]
    return Fitted(
        place=runs[0].place,
        calibration=Calibration(
            device=runs[0].device,
            precision=runs[0].question.work.precision,
            flops_per_s=sustained_flops(starting[0]) / constants.compute_factor,
            gather_overhead_s=constants.gather_overhead_s,
            framework_bytes=round(statistics.median(frameworks)) if frameworks else None,
            num_runs=len(runs),
            error_before=statistics.median(map(abs, before)) if before else None,
            error_after=statistics.median(map(abs, relative_errors(predicted, measured))),
            measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        ),
        runs=runs,
        predicted_s=predicted,
    )


def _rates(run: MeasuredRun) -> Rates:
    rates = run.question.rates_to_fit()
    if rates is None:
        precision = run.question.work.precision
        raise PlanError(
            f"{run.folder}: no constants are known for {run.device} in {precision} to start from."
        )
    return rates
