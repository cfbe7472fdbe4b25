"""How a set of ended ranks is judged: one exit code, the rank that failed first, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.errors import OUT_OF_MEMORY
from megatune.launch import rank_logs
from megatune.launch.culprit import USER_ERROR, find_culprit
from megatune.launch.processes import GOOD_ENDS, describe_exit, signal_name

PORT_TAKEN = 98  # EADDRINUSE. Between a rank and what started it, which takes another port


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How one rank ended. `output` is what it printed, from its log."""

    rank: int
    code: int
    log: Path
    output: str
    stopped_by_us: bool = False


@dataclass(frozen=True, kw_only=True)
class RanksResult:
    """The end of a job that this process started.

    `failure_text` is for the user, and empty when nothing failed or when the failure's message
    has been echoed to the terminal already. `port_taken`: the MASTER_PORT that was in use, so that no
    rank trained. `hung`: the ranks were ended because one of them showed no progress. `stop_asked`: the
    user had asked the job to stop, or its time was over.
    """

    exit_code: int
    failed_rank: int | None
    failure_text: str
    port_taken: int | None = None
    hung: bool = False
    stop_asked: bool = False


def judge(
    exits: Sequence[RankExit], *, num_ranks: int, port: int, echo_rank: int | None, stop_signal: int | None
) -> RanksResult:
    """The verdict over `exits`, which are in the order in which the ranks were seen to end.

    All 0 is 0; some 75 and the rest 0 is 75; a rank that found the user's input wrong makes it 2, one that
    ran out of memory first 12; anything else is 1. `stop_signal`: the signal that the user stopped the job with.
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
        exit_code=OUT_OF_MEMORY if culprit.code == OUT_OF_MEMORY else 1,
        failed_rank=culprit.rank,
        failure_text=text,
        port_taken=port if taken else None,
        stop_asked=stop_signal is not None,
    )


def _failure_heading(culprit: RankExit, num_ranks: int, stop_signal: int | None) -> str:
    text = (
        f"rank {culprit.rank} of {num_ranks} failed first: {describe_exit(culprit.code)}. Log: {culprit.log}"
    )
    if stop_signal is not None:
        text = f"stopped by {signal_name(stop_signal)}, and not every rank could save; {text}"
    return text
