"""How a set of ended ranks is judged: one exit code, the rank that failed first, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.launch import rank_logs
from megatune.launch.processes import GOOD_ENDS, describe_exit, signal_name

USER_ERROR = 2
_LOST_A_PEER, _ENDED_BY_US = 3, 4  # the least guilty ways to fail
PORT_TAKEN = 98  # EADDRINUSE. Between a rank and what started it, which takes another port


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How one rank ended. `output` is what it printed, from its log."""

    rank: int
    code: int
    log: Path
    output: str
    stopped_by_us: bool = False

    @property
    def killed_by_signal(self) -> bool:
        """Whether a signal ended it, and not one of ours."""
        return self.code < 0 and not self.stopped_by_us


@dataclass(frozen=True, kw_only=True)
class RanksResult:
    """The end of a job that this process started.

    `failure_text` is for the user, and empty when nothing failed or when the failure's message
    has been echoed to the terminal already. `port_taken`: the MASTER_PORT that was in use, so that no
    rank trained.
    """

    exit_code: int
    failed_rank: int | None
    failure_text: str
    port_taken: int | None = None


def judge(
    exits: Sequence[RankExit], *, num_ranks: int, port: int, echo_rank: int | None, stop_signal: int | None
) -> RanksResult:
    """The verdict over `exits`, which are in the order in which the ranks were seen to end.

    All 0 is 0; some 75 and the rest 0 is 75; a rank that found the user's input wrong makes it 2;
    anything else is 1. `stop_signal`: the signal that the user stopped the job with.
    """
    if all(ended.code in GOOD_ENDS for ended in exits) and len(exits) == num_ranks:
        return RanksResult(
            exit_code=max((ended.code for ended in exits), default=0), failed_rank=None, failure_text=""
        )
    culprit = find_culprit(exits)
    echoed = next((ended.output for ended in exits if ended.rank == echo_rank), "")
    if culprit.code == USER_ERROR:
        message = rank_logs.user_message(culprit.output)
        return RanksResult(
            exit_code=2, failed_rank=culprit.rank, failure_text="" if message in echoed else message
        )
    tail = rank_logs.failure_tail(culprit.output)
    text = _failure_heading(culprit, num_ranks, stop_signal)
    if tail not in echoed:  # the terminal has it already
        text += f"\n{tail}"
    taken = any(rank_logs.port_was_taken(rank_logs.failure_tail(ended.output), port) for ended in exits)
    return RanksResult(
        exit_code=1, failed_rank=culprit.rank, failure_text=text, port_taken=port if taken else None
    )


def find_culprit(exits: Sequence[RankExit]) -> RankExit:
    """The rank whose failure made the others fail; of equals the one that was seen to end first.

    A rank that dies takes its peers with it, and a peer may well be gone before the first one has
    finished shutting down. So the order of ending is the last thing asked.
    """
    failed = [ended for ended in exits if ended.code not in GOOD_ENDS]
    assert failed, "called only when a rank failed"
    return min(failed, key=_innocence)


def is_cause(ended: RankExit) -> bool:
    """Whether a rank failed of itself, not because others were gone or because we ended it."""
    return ended.code not in GOOD_ENDS and _innocence(ended) < _LOST_A_PEER


def _innocence(ended: RankExit) -> int:
    if ended.code == USER_ERROR:
        return 0
    if ended.killed_by_signal:
        return 1
    if ended.code < 0:
        return _ENDED_BY_US
    return _LOST_A_PEER if rank_logs.lost_a_peer(rank_logs.failure_tail(ended.output)) else 2


def _failure_heading(culprit: RankExit, num_ranks: int, stop_signal: int | None) -> str:
    text = (
        f"rank {culprit.rank} of {num_ranks} failed first: {describe_exit(culprit.code)}. Log: {culprit.log}"
    )
    if stop_signal is not None:
        text = f"stopped by {signal_name(stop_signal)}, and not every rank could save; {text}"
    return text
