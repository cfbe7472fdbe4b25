"""The signals that ask a job to save and stop, and how a process that starts others takes them.

Ranks listen for themselves (`train/stopping.py`): they take those over that are ignored, and leave SIGHUP to who
started them.
"""

import signal
from collections.abc import Callable, Iterable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

REPEAT_S = 1.0
"""A signal within so many seconds of the first is the same request: one Ctrl-C may come from the terminal and
be passed on by a wrapper such as `uv run`; a login shell that closes and its terminal both send SIGHUP."""


def take_signals(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Callable[[], None]:
    """Let `handler` have those of `numbers` that are not ignored (nohup, `&`). Returns the call that gives them back.

    Call both from the main thread.
    """
    known = {number: signal.getsignal(number) for number in numbers}
    taken = {number: before for number, before in known.items() if before not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, handler)

    def give_back() -> None:
        for number, before in taken.items():
            signal.signal(number, before)

    return give_back
