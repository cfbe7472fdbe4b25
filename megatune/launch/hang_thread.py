"""Watches one rank from inside, where no launcher of ours watches it: under srun, mpirun, torchrun and ssh.

When one rank hangs the others wait for it, so each of them sees its own beats stop. Those that still
can write their stacks; the first of them tells whose are missing, or who waits for nobody, and the job ends.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from megatune.launch.checkpoints import newest_saved_step
from megatune.launch.flight_recorder import ask_for_trace
from megatune.launch.hang import judge_hang, write_crash_bundle
from megatune.launch.heartbeat import ENDED, Heart, limit_of, pause_of, read_beats
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.run_folder import RunFolder
from megatune.launch.stacks import read_stacks, stack_path, write_own_stacks


class HangThread:
    """A thread that ends this process when `heart` has stopped for longer than `limit_s` allows.

    `code_when_saved`: the exit code when this start has saved a checkpoint to go on from, else it is 1.
    `end` ends the process at once: the main thread is stuck and cannot.
    """

    def __init__(
        self,
        folder: RunFolder,
        heart: Heart,
        *,
        rank: int,
        num_ranks: int,
        limit_s: float,
        code_when_saved: int = STOPPED_BUT_SAVED,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._folder, self._heart, self._limit_s, self._end = folder, heart, limit_s, end
        self._rank, self._num_ranks, self._code_when_saved = rank, num_ranks, code_when_saved
        self._saved_before = newest_saved_step(folder.checkpoints)
        self._pause_s = pause_of(limit_s)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
        stack_path(folder.heartbeats, rank).unlink(missing_ok=True)  # that of an earlier start

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause_s):
            heart = self._heart
            still_s = time.monotonic() - heart.beaten_at
            if heart.phase != ENDED and still_s > limit_of(heart.phase, self._limit_s):
                self._tell_and_end()
                return

    def _tell_and_end(self) -> None:
        beats_folder = self._folder.heartbeats
        with suppress(OSError):  # a disk that is full or gone may be what it hangs of
            write_own_stacks(beats_folder, self._rank)
            ask_for_trace(beats_folder, self._rank)
        # The others have stopped at about the same time, and look as often.
        if self._stopped.wait(3 * self._pause_s):
            return
        stacks = read_stacks(beats_folder, self._num_ranks)
        if self._rank == min(stacks, default=self._rank):
            self._tell(stacks)
        else:
            self._stopped.wait(3 * self._pause_s)  # its words come first
        has_saved = newest_saved_step(self._folder.checkpoints) > self._saved_before
        self._end(self._code_when_saved if has_saved else 1)

    def _tell(self, stacks: dict[int, str]) -> None:
        beats = read_beats(self._folder.heartbeats, self._num_ranks)
        hang = judge_hang(beats, stacks, self._limit_s)
        bundle = None
        with suppress(OSError):
            bundle = write_crash_bundle(self._folder, hang, beats, stacks)
        print(f"megatune: {hang}. All stacks: {bundle}", file=sys.stderr, flush=True)
