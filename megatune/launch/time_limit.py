"""How long the allocation of a Slurm job still lasts."""

import threading
import time
from collections.abc import Callable

from megatune.errors import SubmitError
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.quantities import parse_left_s
from megatune.launch.slurm_ranks import SlurmJob

_ASK_EVERY_S = 240.0  # an administrator may move the end of a running job
_NO_LIMIT = ("UNLIMITED", "NOT_SET")


class JobEnd:
    """When the allocation ends, as far as is known: from the environment at first, then from squeue.

    squeue is asked beside the training, at the first look and then every few minutes: a controller
    that does not answer holds no step up.
    """

    def __init__(
        self, job: SlurmJob | None, *, call: Call = call, clock: Callable[[], float] = time.time
    ) -> None:
        self._job_id = job.job_id if job else None
        self._end_s = job.end_time_s if job else None
        self._call, self._clock = call, clock
        self._ask_at = clock() + (0 if self._end_s is None else _ASK_EVERY_S)
        self._remark: str | None = None
        self._has_failed = False

    def seconds_left(self) -> float | None:
        """Seconds until the job is ended; None when it has no limit, or none is known yet."""
        if self._job_id and self._clock() >= self._ask_at:
            self._ask_at = self._clock() + _ASK_EVERY_S
            threading.Thread(target=self._ask, args=(self._job_id,), name="time limit", daemon=True).start()
        return None if self._end_s is None else self._end_s - self._clock()

    def take_remark(self) -> str | None:
        """What the user should know, once: that the end of the job cannot be read."""
        remark, self._remark = self._remark, None
        return remark

    def _ask(self, job_id: str) -> None:
        try:
            self._end_s = _end_of(job_id, self._call, self._clock)
        except SubmitError as error:
            if not self._has_failed:  # once: it is asked again every few minutes
                self._remark = f"the time limit of the job cannot be read: {error}"
            self._has_failed = True


def _end_of(job_id: str, call: Call, clock: Callable[[], float]) -> float | None:
    """When the job ends, in seconds since 1970; None without a limit. Raises SubmitError.

    It asks for the time that is left: unlike a date it depends on no time zone or format.
    """
    answer = call(["squeue", "--noheader", f"--jobs={job_id}", "--format=%L"])
    said = answer.out.strip()
    if answer.code != 0:
        words = (answer.err.strip() or said or "no message").splitlines()[-1]
        raise SubmitError(f"squeue failed (exit {answer.code}): {words}")
    if said in _NO_LIMIT:
        return None
    left_s = parse_left_s(said)
    if left_s is None:
        raise SubmitError(f"squeue gave {said!r} for the time that job {job_id} has left.")
    return clock() + left_s
