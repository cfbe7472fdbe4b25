"""The Python stacks of a rank, written to a file when somebody asks for them."""

import faulthandler
import signal
from collections.abc import Callable
from pathlib import Path

STACK_SIGNAL = signal.SIGQUIT
"""What makes a rank write its stacks, as Java's machines do. INT, TERM and USR2 ask it to stop, and NCCL
may take USR1."""


def stack_path(folder: Path, rank: int) -> Path:
    """`heartbeats/rank-00003.stack` for rank 3."""
    return folder / f"rank-{rank:05d}.stack"


def offer_stacks(folder: Path, rank: int) -> Callable[[], None]:
    """Write the stacks of all threads to the rank's file at each STACK_SIGNAL. Returns the call that ends it.

    The handler is faulthandler's: it runs while native code or another thread holds the interpreter.
    """
    file = stack_path(folder, rank).open("w")
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=True, chain=False)

    def stop() -> None:
        faulthandler.unregister(STACK_SIGNAL)
        signal.signal(STACK_SIGNAL, signal.SIG_DFL)
        file.close()

    return stop


def write_own_stacks(folder: Path, rank: int) -> None:
    """Write the stacks of all threads of this process to the rank's file, from any thread."""
    with stack_path(folder, rank).open("w") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)


def read_stacks(folder: Path, num_ranks: int) -> dict[int, str]:
    """By rank, the stacks of those that have written some."""
    found = {}
    for rank in range(num_ranks):
        path = stack_path(folder, rank)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if text.strip():
            found[rank] = text
    return found
