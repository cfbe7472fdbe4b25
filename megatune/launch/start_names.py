"""By which names a start of a run is known, so that what the user asked of the first is not done again by the next.

`checkpoint.resume=none`, or a folder, says where a run begins. A job that is queued again, the next job of a chain and
ranks that are started again after a failure have the same run file, and must go on from what was saved since.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatune.files import write_text_atomic
from megatune.launch.slurm_ranks import slurm_job

REQUEST_VARIABLE = "MEGATUNE_REQUEST"
"""Set by `megatune train` for its ranks, and by the script of `megatune submit`: all starts that have it are one."""


@dataclass(frozen=True, kw_only=True)
class StartNames:
    """The names of one start."""

    all: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    """Those that an earlier start of the same request may have had."""

    def was_begun(self, record: Path) -> bool:
        """Whether an earlier start has left one of `again` in the file `record`."""
        if not record.is_file():
            return False
        return not set(self.again).isdisjoint(record.read_text(encoding="utf-8").splitlines())

    def forget_others(self, record: Path) -> None:
        """Take `record` away where no start before this one can have had its request.

        torchrun calls every run `none` unless it is told otherwise. Before anything that may fail.
        """
        if not self.again:
            record.unlink(missing_ok=True)

    def begin(self, record: Path) -> None:
        """Leave them in `record`, for the next start. A start without names leaves what is there."""
        if self.all:
            write_text_atomic(record, "".join(f"{name}\n" for name in self.all))


def start_names(environ: Mapping[str, str]) -> StartNames:
    """Those that the environment of a rank holds: see `REQUEST_VARIABLE`; the Slurm job; torchrun's run.

    A job or a run of torchrun may be asked for several starts one after the other: only those that Slurm or torchrun
    count as restarts are the same one. Raises LaunchError for a count that is none.
    """
    found: list[tuple[str, bool]] = []
    if environ.get(REQUEST_VARIABLE):
        found.append((f"request {environ[REQUEST_VARIABLE]}", True))
    job = slurm_job(environ)
    if job is not None and job.job_id is not None:
        found.append((f"slurm {job.job_id}", job.restart_count > 0))
    if environ.get("TORCHELASTIC_RUN_ID"):
        count = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        found.append((f"torchrun {environ['TORCHELASTIC_RUN_ID']}", count != "0"))
    return StartNames(
        all=tuple(name for name, _ in found), again=tuple(name for name, is_again in found if is_again)
    )
