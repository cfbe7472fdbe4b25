"""Signals that end a suite early: what is finished is kept, what runs is ended."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

from megatune.launch.processes import signal_name
from megatune.launch.watch import STOP_SIGNALS

# One Ctrl-C may arrive twice: from the terminal and passed on by a wrapper such as `uv run`.
_REPEAT_S = 1.0


class CutOff(BaseException):
    """A signal ends the suite. No Exception: a case must not take it for a failure of its own."""


class CutOffSignals:
    """While it is entered the first stop signal raises CutOff in the main thread, and a second one kills.

    Signals that are ignored (nohup, `&`) stay ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """The first signal, as `SIGTERM`."""
        self._received_at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        known = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._before = {
            number: before for number, before in known.items() if before not in (signal.SIG_IGN, None)
        }
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what getsignal() gave, signal() takes

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is None:
            self.received, self._received_at = signal_name(number), time.monotonic()
            raise CutOff(self.received)
        if time.monotonic() - self._received_at > _REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
