"""One save from its beginning to its commit, written while training waits or behind it.

Two acts lie between beginning and end: every rank writes its files, then the first rank commits. Each
runs in a thread of its rank that touches files and nothing else; it issues no collective, so that it can
neither meet those of training in another order nor keep a rank waiting. The ranks go from one act to the
next in `advance`, which the main threads call together at a point where all have said that they are
ready: whether a save has ended, and how, is therefore the same on all ranks between any two steps.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.agreement import Agreement, Outcome, attempt
from megatune.checkpoint.manifest import FileEntry
from megatune.checkpoint.snapshot import HostCopy
from megatune.checkpoint.write import (
    Generators,
    Shared,
    commit,
    make_room,
    refuse_not_finite,
    write_rank,
)
from megatune.engine.state import RankState
from megatune.engine.world import World
from megatune.launch.checkpoints import folder_name


class _Act:
    """Something that runs in a thread of its own."""

    def __init__(self, act: Callable[[], Any], device: torch.device) -> None:
        """device: this rank's."""
        self._act, self._device, self._done = act, device, threading.Event()
        self.outcome = Outcome()
        # A daemon: a rank that fails meanwhile must not wait for its disk.
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def _run(self) -> None:
        self.outcome = attempt(self._on_own_device)
        self._done.set()

    def _on_own_device(self) -> Any:
        # A new thread is on the first GPU, and would take 0.5 GiB there for a context.
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        return self._act()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float | None) -> None:
        self._done.wait(timeout_s)


class SaveInFlight:
    """A save on its way to a checkpoint. Create it on all ranks: that is collective; then `begin` it.

    Raises, on all ranks, SaveError where there is no room; nothing is left behind then, here and in `advance`.
    """

    def __init__(
        self,
        checkpoints: Path,
        *,
        world: World,
        state: RankState,
        shared: Shared,
        then: Callable[[], str | None] = lambda: None,
    ) -> None:
        """then: done by the first rank right after the commit, in the same thread; gives what it has to remark."""
        self.began_at, self.committed_at = time.monotonic(), 0.0
        self.step, self.final = shared.step, checkpoints / folder_name(shared.step)
        self._unfinished = self.final.with_suffix(".tmp")
        self._world, self._state, self._shared, self._then = world, state, shared, then
        self._agreement = Agreement(world, self._unfinished)
        sizes = self._agreement.settle(attempt(lambda: state.num_bytes))
        self.own_bytes, self.state_bytes = sizes[world.rank], sum(sizes)
        self._agreement.settle(attempt(self._make_room))
        self.own_bytes_written = 0
        self._copied = threading.Event()
        self._files: dict[str, FileEntry] | None = None
        self.is_behind = False
        """Whether training goes on meanwhile."""
        self.remark: str | None = None

    def begin(self, copy_to: HostCopy | None = None) -> None:
        """Write this rank's files: from a copy of the state in `copy_to`, or from the state itself.

        Training must leave the state alone until it is copied, as `wait_until_copied` tells, or until the ranks are
        ready. Forward and backward do: weights and moments change in the optimizer step.
        """
        self.is_behind = copy_to is not None
        if self._world.device.type == "cuda":  # the thread's copies must not overtake the last step
            torch.cuda.synchronize()
        # Now, not in the thread: dropout of the next step changes them.
        generators = attempt(lambda: Generators.now(self._world.device))
        state = self._state
        del self._state  # what training changes must not be what is written
        if copy_to is None:
            self._copied.set()
        self._act = _Act(lambda: self._write(state, generators, copy_to), self._world.device)

    def wait_until_copied(self) -> None:
        """Wait until training may change the state, in a save behind it."""
        self._copied.wait()

    @property
    def num_bytes(self) -> int:
        """Bytes of all files but the manifest, once they are written."""
        return sum(entry.size for entry in (self._files or {}).values())

    @property
    def is_ready(self) -> bool:
        """Whether this rank has done what the act needs of it. `advance` may follow when all ranks are."""
        return self._act.is_done

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until this rank is ready, or for so long."""
        self._act.wait(timeout_s)

    def advance(self) -> bool:
        """Go on to the commit, or end. Returns whether the checkpoint stands. Collective; all ranks are ready.

        Raises on every rank when one has failed: SaveError where the disk is the reason (full, quota,
        read-only, broken), CheckpointError for anything else, weights that are not finite among it.
        """
        values = self._agreement.settle(self._act.outcome)
        if self._files is not None:
            self.committed_at, self.remark = values[0]
            return True
        self._files = {name: entry for entries in values for name, entry in entries.items()}
        self._act = _Act(self._commit if self._world.is_first else lambda: None, self._world.device)
        return False

    def _make_room(self) -> None:
        if self._world.is_first:
            make_room(self._unfinished, self.state_bytes)

    def _write(self, state: RankState, generators: Outcome, copy_to: HostCopy | None) -> dict[str, FileEntry]:
        if generators.error is not None:
            raise generators.error
        try:
            held = state if copy_to is None else copy_to.of(state)
        finally:  # without memory for the copy, too, training goes on
            self._copied.set()
        refuse_not_finite(held)
        return write_rank(
            self._unfinished, self._world.rank, held, generators.value, self._shared, self._count
        )

    def _count(self, num_bytes: int) -> None:
        self.own_bytes_written += num_bytes

    def _commit(self) -> tuple[float, str | None]:
        assert self._files is not None, "all ranks have written"
        commit(self._unfinished, self.final, self._world, self._shared, self._files)
        committed_at = time.monotonic()
        return committed_at, self._then()
