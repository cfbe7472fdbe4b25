"""Signals that end a suite early: what is finished is kept, what runs is ended."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from megatune.launch.processes import signal_name
from megatune.launch.signals import REPEAT_S, STOP_SIGNALS, take_signals


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
        self._give_back: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._give_back = take_signals(STOP_SIGNALS, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is None:
            self.received, self._received_at = signal_name(number), time.monotonic()
            raise CutOff(self.received)
        if time.monotonic() - self._received_at > REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
