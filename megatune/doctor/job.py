"""The doctor on one machine: start the ranks, wait, hand over their report."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatune.config import LoadedRun
from megatune.launch.devices import count_gpus, ranks_here
from megatune.launch.local import run_ranks
from megatune.launch.processes import module_command

_START_S = 1.0  # of this process before its ranks, and after them
_GRACE_S = 1.0


def check_this_machine(
    loaded: LoadedRun | None, run_file: Path | None, overrides: Sequence[str], *, limit_s: float
) -> tuple[dict[str, Any] | None, int, str]:
    """Run the doctor's ranks here. Returns the report, the exit code, and what to say when there is no report."""
    num_ranks = choose_num_ranks(loaded)
    folder = tempfile.mkdtemp(prefix="megatune-doctor-")
    is_needed = False
    try:
        report = Path(folder) / "report.json"
        request = Path(folder) / "request.json"
        request.write_text(
            json.dumps(
                {
                    "run_file": None if run_file is None else str(run_file),
                    "overrides": list(overrides),
                    "limit_s": limit_s - _START_S - _GRACE_S,
                    "nodes": None,
                    "report": str(report),
                }
            )
        )
        result = run_ranks(
            module_command("megatune.doctor.rank", str(request)),
            num_ranks=num_ranks,
            log_dir=Path(folder) / "logs",
            timeout_s=limit_s - _GRACE_S,
            grace_s=_GRACE_S,
        )
        answer = json.loads(report.read_text()) if report.exists() else None
        is_needed = answer is None  # the failure names the log of a rank
    finally:
        if not is_needed:
            shutil.rmtree(folder)
    return answer, result.exit_code, result.failure_text


def choose_num_ranks(loaded: LoadedRun | None) -> int:
    """As many ranks as `train` would start here; without a run file one a GPU, else one a core."""
    if loaded is None:
        return ranks_here("auto", 1, num_gpus=count_gpus())
    run = loaded.run
    return ranks_here(run.launch.nproc_per_node, run.parallel.tp_size, num_gpus=count_gpus())
