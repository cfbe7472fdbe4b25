"""The end of the doctor, whatever hangs: a disk that does not answer, a driver, a store."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_HARD_AFTER_S = 1.0  # after the soft end, which needs this process to run Python


class Watchdog:
    """Ends this process with exit code 1 shortly before `limit_s` seconds are over."""

    def __init__(self, limit_s: float) -> None:
        self._ends_at = time.monotonic() + limit_s - _HARD_AFTER_S
        self._last_words: Callable[[], None] = _nothing
        self._timer = threading.Timer(limit_s - _HARD_AFTER_S, self._end)
        self._timer.daemon = True
        self._timer.start()
        # The kernel's own timer: it also ends a process whose main thread never gives up the interpreter.
        signal.setitimer(signal.ITIMER_REAL, limit_s)

    def left_s(self) -> float:
        """Seconds until this process is ended."""
        return self._ends_at - time.monotonic()

    def say_at_end(self, last_words: Callable[[], None]) -> None:
        """Call `last_words` before this process is ended; it runs in another thread."""
        self._last_words = last_words

    def stop(self) -> None:
        """Call it off."""
        self._timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _end(self) -> None:
        try:
            self._last_words()
            print("megatune: the doctor's time is over; it was here:", file=sys.stderr)
            faulthandler.dump_traceback(all_threads=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _nothing() -> None:
    """No last words."""
