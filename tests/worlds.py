"""Several real ranks for tests: forked from a process that has imported torch and DeepSpeed once.

A world of each size lives for the whole test session and runs one function after another, so a
test that needs four ranks costs no start of four interpreters. A rank that raises or hangs ends
its world; the next test gets a new one.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from megatune.launch.ports import reserve_port

_PRELOADED = ["megatune.train.rank", "transformers.models.auto.modeling_auto"]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class TestWorld:
    """`num_ranks` processes that run functions together."""

    __test__ = False

    def __init__(self, num_ranks: int) -> None:
        context = _context()
        self.num_ranks = num_ranks
        self._held = ExitStack()
        # Kept until the world ends: another world must not be given it before rank 0 has bound it.
        port = self._held.enter_context(reserve_port())
        self._stacks = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            served = (theirs, rank, num_ranks, port, sys.path, self._stacks / str(rank))
            process = context.Process(target=_serve, args=served, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 240) -> list[Any]:
        """The results of `function(*args)` of all ranks, in rank order. Raises the first rank's error."""
        for pipe in self._pipes:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        pending = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while pending:
            ready = wait(list(pending), timeout=timeout_s)
            if not ready:
                hung = sorted(pending.values())
                raise AssertionError(f"ranks {hung} of {function.__name__}{args} hang:\n{self._where(hung)}")
            for pipe in ready:
                rank = pending.pop(pipe)  # type: ignore[arg-type,call-overload]
                try:
                    ok, value = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    raise AssertionError(f"rank {rank} died in {function.__name__}{args}") from None
                if not ok:
                    raise RankError(f"rank {rank} of {function.__name__}{args}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.num_ranks)]

    def _where(self, ranks: list[int]) -> str:
        """The stacks of `ranks` that do not answer."""
        for rank in ranks:
            os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(2)
        return "\n".join(f"rank {rank}:\n{(self._stacks / str(rank)).read_text()}" for rank in ranks)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._held.close()


class RankError(AssertionError):
    """A rank raised; the message is its traceback."""


def _serve(pipe: Connection, rank: int, num_ranks: int, port: int, path: list[str], stacks: Path) -> None:
    sys.path[:] = path
    faulthandler.register(signal.SIGUSR1, stacks.open("w"))
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    torch.set_num_threads(1)
    linear = torch.nn.functional.linear
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        # A ZeRO-3 engine puts another in its place for good, which rounds differently on some processors: what
        # an engine of the next function computes must not hang on which engines this process has had.
        torch.nn.functional.linear = linear
        try:
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


class Worlds:
    """The worlds of a test session, by size.

    Those of more than `_MOST_KEPT` ranks end with their function: gloo's threads wake all the time, and few tests ask
    for so many.
    """

    _MOST_KEPT = 4

    def __init__(self) -> None:
        self._worlds: dict[int, TestWorld] = {}

    def run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        world = self._worlds.get(num_ranks) or TestWorld(num_ranks)
        self._worlds[num_ranks] = world
        is_kept = False
        try:
            found = world.run(function, *args)
            is_kept = num_ranks <= self._MOST_KEPT
        finally:
            if not is_kept:
                world.close()
                del self._worlds[num_ranks]
        return found

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()
        self._worlds.clear()
