"""`megatune verify`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from megatune.cli.named import names_run_file
from megatune.config import load_run
from megatune.errors import ConfigError, LaunchError
from megatune.launch.ranks import discover_rank
from megatune.report.tables import render_table, show

if TYPE_CHECKING:
    from megatune.train.verify.job import Verification

_COLUMNS = (
    "layout",
    "loss_max_rel",
    "grad_norm_max_rel",
    "weights_update_rel",
    "weights_max_abs",
    "first_wrong_step",
    "passed",
)


@names_run_file
def verify_run(run_file: Path, overrides: list[str], *, steps: int, shrink: bool, as_json: bool) -> int:
    """Verify the layout of a run and print the comparison. Returns the exit code: 0 equal, 1 not."""
    if steps < 1:
        raise ConfigError([f"--steps is {steps}; use 1 or more."], source="megatune verify")
    if discover_rank() is not None:
        raise LaunchError("megatune verify starts all its ranks itself; call it without torchrun.")
    loaded = load_run(run_file, overrides)
    for notice in loaded.notices:
        _tell(notice)
    from megatune.train.verify.job import verify_job

    # Libraries greet on standard output when they are first used; it belongs to the answer alone.
    with redirect_stdout(sys.stderr):
        found = verify_job(loaded, run_file, overrides, num_steps=steps, shrunken=shrink, progress=_tell)
    rows = [{name: getattr(row, name) for name in _COLUMNS} for row in found.rows]
    table = render_table(rows, title=f"{steps} steps against one process: {found.reference}")
    show(found.as_object(), table, *map(Text, _verdict(found)), as_json=as_json)
    return 0 if found.passed else 1


def _verdict(found: "Verification") -> list[str]:
    allowed = found.tolerance
    lines = [f"note: {note}" for note in found.notes]
    lines.append(
        f"tolerance: loss {allowed.loss:g}, gradient norm {allowed.grad_norm:g} (relative, every step), "
        f"weights {allowed.weights:g} of what training changed"
    )
    for row in found.rows:
        if not row.passed:
            step = f"first at step {row.first_wrong_step}; " if row.first_wrong_step else ""
            lines.append(f"{row.layout} is not the reference: {step}largest difference in {row.worst_weight}")
    return [
        *lines,
        "the layout trains like one process" if found.passed else "the layout does NOT train alike",
    ]


def _tell(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr, flush=True)
