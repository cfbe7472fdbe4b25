"""`megatune train`."""

import sys
from collections.abc import Iterable
from pathlib import Path

from megatune.config import load_run
from megatune.launch.ranks import discover_rank


def train_run(run_file: Path, overrides: list[str]) -> int:
    """Train as this process's rank, or start the ranks. Returns the exit code."""
    loaded = load_run(run_file, overrides)
    rank = discover_rank()
    if rank is not None:
        if rank.rank == 0 and rank.launcher != "local":  # our own launcher has told them already
            _tell(loaded.notices)
        from megatune.train.rank import train_rank

        return train_rank(loaded, rank)
    from megatune.train.job import interrupted, train_job

    _tell(loaded.notices)
    arguments = [str(run_file), *overrides]
    code = train_job(loaded, arguments)
    output_dir = Path(loaded.run.train.output_dir)
    if code == 0:
        from megatune.cli.report import report_run

        report_run(output_dir, as_json=False)
    elif code == 75:
        print(interrupted(loaded.run, arguments))
    return code


def _tell(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"megatune: {notice}", file=sys.stderr)
