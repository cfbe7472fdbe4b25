"""When to stop: signals that ask for it, a job about to end, and a validation loss that stopped falling."""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

# SIGUSR2 warns of a job's time limit: SIGUSR1, which is the usual one, may be caught by NCCL. It counts
# where it comes: left alone, it would end the process.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_MEANINGS = {signal.SIGUSR2: " (the time limit of the job is near)"}
_SAVES_TO_FIT = 1.5  # shared disks are now fast, now slow
_STEPS_TO_FIT = 2.0  # the one that runs, and one that is slower than those before
_MARGIN_S = 10.0
_STEPS_MEASURED = 10


class StopRequest:
    """Remembers that a signal asked this rank to stop; the step makes all ranks agree on it.

    The handler only sets a flag: a save from inside a handler could interrupt a collective.
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None

    def listen(self) -> Callable[[], None]:
        """Take SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 over. Returns the call that gives them back."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked_by is None:  # the first says why
            self.asked_by = signal.Signals(number).name + _MEANINGS.get(signal.Signals(number), "")


class Stopping:
    """Whether this rank knows a reason to stop: it was asked to, or its job ends soon.

    Training goes on while what is left of the job holds a save, one and a half times as long as the
    last one, and two steps. All ranks may ask; `seconds_left` is known to the first one alone.
    """

    def __init__(
        self,
        request: StopRequest,
        seconds_left: Callable[[], float | None] = lambda: None,
        *,
        unmeasured_save_s: float = 300.0,
    ) -> None:
        """`unmeasured_save_s`: what is kept free for a save while none was seen (slurm.signal_delay_s)."""
        self._request, self.seconds_left = request, seconds_left
        self._unmeasured_save_s = unmeasured_save_s
        self._save_s: float | None = None
        self._save_began_at: float | None = None
        self._evaluation_s: float | None = None
        self._step_s: deque[float] = deque(maxlen=_STEPS_MEASURED)
        self._found: str | None = None  # and stays: what one look found, all ranks have acted on

    def learn(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the durations of saves and evaluations from the metrics of earlier starts."""
        for record in records:
            if record.get("event") == "save":
                self.saved(record["seconds"])
            elif record.get("event") == "eval":
                self.evaluated(record["seconds"])

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._step_s.append(seconds)

    def save_began(self) -> None:
        """A save is under way: it will be finished before the last one is made."""
        self._save_began_at = time.monotonic()

    def save_ended(self) -> None:
        """It is no more."""
        self._save_began_at = None

    def saved(self, seconds: float) -> None:
        """A save took so long."""
        self._save_s = seconds
        self.save_ended()

    def evaluated(self, seconds: float) -> None:
        """A whole evaluation took so long."""
        self._evaluation_s = seconds

    def reason(self, *, before_evaluation: bool = False) -> str | None:
        """Why to stop, or None. `before_evaluation`: also when one as long as the last does not fit."""
        if self._found is None:
            self._found = self._look(before_evaluation)
        return self._found

    def _look(self, before_evaluation: bool) -> str | None:
        if self._request.asked_by is not None:
            return f"asked to stop by {self._request.asked_by}"
        left_s = self.seconds_left()
        evaluation_s = (self._evaluation_s or 0.0) if before_evaluation else 0.0
        if left_s is None or left_s >= evaluation_s + self._needed_s():
            return None
        evaluating = f"evaluating takes {evaluation_s:.0f} s, " if evaluation_s else ""
        return f"the job ends in {left_s:.0f} s; {evaluating}{self._saving()}"

    def _needed_s(self) -> float:
        steps_s = _STEPS_TO_FIT * max(self._step_s, default=0.0)
        save_s = self._unmeasured_save_s if self._save_s is None else _SAVES_TO_FIT * self._save_s
        return save_s + self._rest_of_save_s(save_s) + steps_s + _MARGIN_S

    def _rest_of_save_s(self, save_s: float) -> float:
        """What the save that is under way may still take."""
        if self._save_began_at is None:
            return 0.0
        return max(0.0, save_s - (time.monotonic() - self._save_began_at))

    def _saving(self) -> str:
        if self._save_s is None:
            return (
                f"no save was measured yet, and {self._unmeasured_save_s:.0f} s are kept for one "
                "(slurm.signal_delay_s)"
            )
        return f"saving takes {self._save_s:.0f} s"


@dataclass(frozen=True)
class Patience:
    """How long validation may go without a better value of the metric; `limit` None never stops."""

    limit: int | None
    best: float | None = None
    """Best value so far."""
    without_gain: int = 0
    """Evaluations since then."""
    metric: str = "loss"
    greater_is_better: bool = False
    min_delta: float = 0.0
    """What a value must be better by."""
    asked: str | None = None
    """What the metric is taken of: see `Evaluations.asked`. None is unknown."""

    def after(self, value: float | None) -> "Patience":
        """The state after an evaluation. Only a finite value can be a gain."""
        if self.is_better(value, self.best, by=self.min_delta):
            return replace(self, best=value, without_gain=0)
        return replace(self, without_gain=self.without_gain + 1)

    def is_better(self, value: float | None, than: float | None, *, by: float = 0.0) -> bool:
        """Whether `value` is a gain over `than`; over None every finite value is."""
        if value is None or not math.isfinite(value):
            return False
        if than is None:
            return True
        return value - than > by if self.greater_is_better else than - value > by

    def going_on_from(self, saved: "Patience") -> "Patience | None":
        """These rules with what `saved` has seen; None when it looked at another metric or at other rows."""
        if (saved.metric, saved.greater_is_better) != (self.metric, self.greater_is_better):
            return None
        if None not in (saved.asked, self.asked) and saved.asked != self.asked:
            return None
        return replace(self, best=saved.best, without_gain=saved.without_gain)

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.without_gain >= self.limit

    @property
    def reason(self) -> str:
        """Why it is exhausted."""
        direction = "higher" if self.greater_is_better else "lower"
        return f"no {direction} {self.metric} in {self.limit} evaluations"
