"""When to stop: signals that ask for it, and a validation loss that stopped falling."""

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers that a signal asked this rank to stop; the step makes all ranks agree on it.

    The handler only sets a flag: a save from inside a handler could interrupt a collective.
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None

    def listen(self) -> Callable[[], None]:
        """Take SIGINT and SIGTERM over. Returns the call that gives them back."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked_by = signal.Signals(number).name


@dataclass(frozen=True)
class Patience:
    """How long validation may go without a new best loss; `limit` None never stops."""

    limit: int | None
    best: float | None = None
    """Lowest validation loss so far."""
    without_gain: int = 0
    """Evaluations since then."""

    def after(self, loss: float | None) -> "Patience":
        """The state after an evaluation. Only a finite loss can be a gain."""
        if loss is not None and math.isfinite(loss) and (self.best is None or loss < self.best):
            return replace(self, best=loss, without_gain=0)
        return replace(self, without_gain=self.without_gain + 1)

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.without_gain >= self.limit
