"""Notices that the ranks of this machine stand still, asks them for their stacks, and ends them."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatune.launch.checkpoints import newest_saved_step
from megatune.launch.flight_recorder import ask_for_trace, traces
from megatune.launch.hang import Hang, judge_hang, write_crash_bundle
from megatune.launch.heartbeat import StillnessWatch, forget_beats, pause_of, read_beats
from megatune.launch.processes import STOPPED_BUT_SAVED, RankProcess
from megatune.launch.run_folder import RunFolder
from megatune.launch.stacks import STACK_SIGNAL, read_stacks
from megatune.launch.verdict import RanksResult
from megatune.launch.watch import Watch

_ANSWER_S = 3.0
"""What a rank has to write its stack: the handler works in C and waits for no lock."""


@dataclass(frozen=True, kw_only=True)
class HangRule:
    """When ranks that write beats into `folder` are ended because one shows none."""

    folder: RunFolder
    limit_s: float


class LocalHangs:
    """Looks at the beats of all ranks that `watch` holds."""

    def __init__(self, rule: HangRule, watch: Watch[RankProcess], num_ranks: int) -> None:
        self._rule, self._watch, self._num_ranks = rule, watch, num_ranks
        self._stillness = StillnessWatch(rule.limit_s)
        self._pause_s = pause_of(rule.limit_s)
        self._look_at = 0.0
        self._asked_at: float | None = None
        self._traced = 0  # ranks that were asked for a trace of NCCL
        self._saved_before = newest_saved_step(rule.folder.checkpoints)
        self.found: Hang | None = None
        self.bundle: Path | None = None
        forget_beats(rule.folder.heartbeats)

    def look(self) -> None:
        """Called by the watch ten times a second."""
        now = time.monotonic()
        if self.found is not None or now < self._look_at:
            return
        if self._asked_at is not None:
            self._take_stacks(now)
            return
        self._look_at = now + self._pause_s
        beats = read_beats(self._rule.folder.heartbeats, self._num_ranks)
        if self._stillness.still(beats, now):
            self._asked_at = now
            for member in self._watch.members:
                if member.poll() is None:
                    member.stop(STACK_SIGNAL)
                    self._traced += ask_for_trace(self._rule.folder.heartbeats, member.rank)

    def result(self) -> RanksResult:
        """How the job ended: as one to go on with when this start has saved something, else as failed."""
        assert self.found is not None
        has_saved = newest_saved_step(self._rule.folder.checkpoints) > self._saved_before
        text = f"{self.found}. All stacks: {self.bundle}" if self.bundle else str(self.found)
        return RanksResult(
            exit_code=STOPPED_BUT_SAVED if has_saved else 1,
            failed_rank=self.found.suspects[0].rank,
            failure_text=text,
            hung=True,
            stop_asked=self._watch.stop_signal is not None,
        )

    def _take_stacks(self, now: float) -> None:
        folder = self._rule.folder
        stacks = read_stacks(folder.heartbeats, self._num_ranks)
        assert self._asked_at is not None
        missing = len(stacks) < self._num_ranks or len(traces(folder.heartbeats)) < self._traced
        if missing and now < self._asked_at + _ANSWER_S:
            return
        beats = read_beats(folder.heartbeats, self._num_ranks)
        self.found = judge_hang(beats, stacks, self._rule.limit_s)
        with suppress(OSError):  # a full disk may be what they hang of
            self.bundle = write_crash_bundle(folder, self.found, beats, stacks)
        self._watch.give_up(str(self.found))
