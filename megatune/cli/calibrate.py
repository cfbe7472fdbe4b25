"""`megatune plan --calibrate`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from megatune.launch.calibrate import Fitted, calibrate
from megatune.launch.measurements import calibration_file
from megatune.report.tables import render_table, show

SCHEMA = 1


def calibrate_runs(folders: list[Path], *, as_json: bool) -> None:
    """Fit the planner's constants to `folders`, keep them, and say how well they fit."""
    found = calibrate(folders)
    answer = {"schema": SCHEMA, **calibrated_object(found)}
    rows = [row for fitted in found for row in _rows(fitted)]
    show(answer, render_table(rows), *map(Text, calibrated_lines(found)), as_json=as_json)


def calibrated_object(found: Sequence[Fitted]) -> dict[str, Any]:
    """For `--json`."""
    return {
        "file": str(calibration_file()),
        "calibrations": [{"place": fitted.place, **asdict(fitted.calibration)} for fitted in found],
        "runs": [row for fitted in found for row in _rows(fitted)],
    }


def calibrated_lines(found: Sequence[Fitted]) -> list[str]:
    """For people, beside the table of runs."""
    return [line for fitted in found for line in _lines(fitted)]


def _rows(fitted: Fitted) -> list[dict[str, object]]:
    return [
        {
            "run": str(run.folder),
            "layout": str(run.layout),
            "steps": run.num_steps,
            "measured_s": run.step_s,
            "predicted_s": predicted,
            "error": f"{predicted / run.step_s - 1:+.1%}",
        }
        for run, predicted in zip(fitted.runs, fitted.predicted_s, strict=True)
    ]


def _lines(fitted: Fitted) -> list[str]:
    known = fitted.calibration
    before = "nothing was known before" if known.error_before is None else f"before {known.error_before:.1%}"
    return [
        f"{fitted.place}: {known.device} in {known.precision}, {known.num_runs} run(s): matrix products at "
        f"{known.flops_per_s / 1e12:.3g} TFLOP/s a rank, {known.gather_overhead_s * 1e6:.0f} us a collective of ZeRO; "
        f"median error {known.error_after:.1%} ({before})",
        f"kept in {calibration_file()}; plans for {fitted.place} use it from now on",
    ]
