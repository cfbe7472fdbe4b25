"""The states of a Slurm job, what each means, and what it means for the run.

Names: `man squeue` and `man sacct`, JOB STATE CODES. A job is judged by its state and never by its
exit code alone: a job that lost its node or was cancelled ends with 0:0.
"""

from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobState:
    """One state and its sentence."""

    name: str
    stage: Stage
    meaning: str

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs."""
        return self.stage in (Stage.WAITING, Stage.RUNNING)


_STATES = {
    state.name: state
    for state in (
        JobState("PENDING", Stage.WAITING, "waits in the queue"),
        JobState("REQUEUED", Stage.WAITING, "was put back into the queue"),
        JobState("REQUEUE_FED", Stage.WAITING, "was put back into the queue of a federation"),
        JobState("REQUEUE_HOLD", Stage.WAITING, "was put back into the queue and is held"),
        JobState(
            "SPECIAL_EXIT", Stage.WAITING, "was put back into the queue in a special state, and is held"
        ),
        JobState("RESV_DEL_HOLD", Stage.WAITING, "is held because its reservation was deleted"),
        JobState("CONFIGURING", Stage.RUNNING, "has its nodes, which are being made ready"),
        JobState("RUNNING", Stage.RUNNING, "runs"),
        JobState("RESIZING", Stage.RUNNING, "runs and changes its size"),
        JobState("SIGNALING", Stage.RUNNING, "runs and is being sent a signal"),
        JobState("STAGE_OUT", Stage.RUNNING, "has ended and copies files out"),
        JobState("STOPPED", Stage.RUNNING, "has been stopped with a signal and keeps its nodes"),
        JobState("SUSPENDED", Stage.RUNNING, "is suspended and has given its cores back"),
        JobState("COMPLETING", Stage.RUNNING, "has ended, and its nodes are being cleaned up"),
        JobState("COMPLETED", Stage.DONE, "has ended with exit code 0"),
        JobState("BOOT_FAIL", Stage.FAILED, "was ended because a node could not be booted"),
        JobState("CANCELLED", Stage.FAILED, "was cancelled by its user or by an administrator"),
        JobState("DEADLINE", Stage.FAILED, "was ended because its deadline could not be met"),
        JobState("FAILED", Stage.FAILED, "has ended with an exit code other than 0"),
        JobState("NODE_FAIL", Stage.FAILED, "was ended because one of its nodes failed"),
        JobState(
            "OUT_OF_MEMORY", Stage.FAILED, "was ended because it used more memory than it had asked for"
        ),
        JobState("PREEMPTED", Stage.FAILED, "was ended to make room for a job of higher priority"),
        JobState("REVOKED", Stage.FAILED, "was taken over by another cluster of the federation"),
        JobState("TIMEOUT", Stage.FAILED, "was ended because it reached its time limit"),
    )
}


def job_state(text: str) -> JobState:
    """The state that squeue or sacct calls `text`, for instance `CANCELLED by 1000` or `NODE_FAIL`.

    >>> job_state("CANCELLED by 1000").name
    'CANCELLED'

    A name that no Slurm up to 25.05 has keeps its name, at the stage UNKNOWN.
    """
    words = text.split()
    name = words[0].rstrip("+") if words else ""
    return _STATES.get(name) or JobState(name, Stage.UNKNOWN, "is in a state that megatune does not know")
