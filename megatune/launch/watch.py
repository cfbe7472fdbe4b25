"""The one loop that watches over started processes, on whatever machine they run.

No threads: read what arrives, notice who has ended, pass signals on, end the rest after a failure.
"""

import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Generic, Protocol, TypeVar

from megatune.launch.processes import signal_name
from megatune.launch.signals import REPEAT_S, STOP_SIGNALS, take_signals

_TICK_S = 0.1
_DRAIN_S = 0.5
_PASSED_ON_AS = {signal.SIGHUP: signal.SIGTERM, signal.SIGUSR1: signal.SIGUSR2}  # NCCL may catch USR1


class Member(Protocol):
    """Something started that ends by itself: a rank, or all ranks of another host."""

    @property
    def name(self) -> str:
        """Its rank, or its ranks, for messages."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def has_failed(self) -> bool:
        """Whether it, or a part of it, has ended so that the others cannot go on."""

    def stop(self, signum: int) -> None:
        """The user wants the job to save and stop."""

    def end(self) -> None:
        """Another member has failed: end, this end is no cause."""

    def kill(self) -> None:
        """End it and whatever it started, at once. Harmless when it has ended."""


class Stream(Protocol):
    """Something to read from while the members run."""

    @property
    def fd(self) -> int:
        """What to wait on."""

    def pump(self) -> bool:
        """Take what is there; False at the end. Called when `fd` is readable."""

    def follow_window_size(self) -> None:
        """Our terminal has another size."""

    def close(self) -> None:
        """Give it up."""


AnyMember = TypeVar("AnyMember", bound=Member)


class Watch(Generic[AnyMember]):
    """The members of one start and what is read from them, until all have ended.

    When a member fails the others are told to end and are killed after `grace_s` seconds. The first
    stop signal is passed on, a second one kills. After `timeout_s` seconds the job is given up.
    `on_end` is told each member that was seen to end, once; `on_tick` is called ten times a second.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        timeout_s: float | None = None,
        on_end: Callable[[AnyMember], None] = lambda _: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.members: list[AnyMember] = []
        self.ended: list[AnyMember] = []
        """In the order in which they were seen to end."""
        self.stop_signal: int | None = None
        """What the user stopped the job with."""
        self.gave_up: str | None = None
        """Why the members were killed, when not because one of them failed."""
        self._grace_s, self._timeout_s, self._on_end = grace_s, timeout_s, on_end
        self.on_tick = on_tick
        self._streams = selectors.DefaultSelector()
        self._signals: list[int] = []  # that arrived and are not acted on yet
        self._stopped_at = 0.0
        self._kill_at: float | None = None
        self._give_up_at = None if timeout_s is None else time.monotonic() + timeout_s

    def read(self, stream: Stream) -> None:
        """Pump `stream` from now on, and close it at its end."""
        self._streams.register(stream.fd, selectors.EVENT_READ, stream)

    def drop(self, stream: Stream) -> None:
        """Close `stream` and pump it no more; harmless when it is not read."""
        if stream.fd in self._streams.get_map():
            self._streams.unregister(stream.fd)
            stream.close()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Return when all members have ended, or when `until` is true."""
        while len(self.ended) < len(self.members) and not until():
            self._pump(_TICK_S)
            self._note_ended()
            self._pass_signals_on()
            self._end_after_failure()
            self.on_tick()

    def close(self) -> None:
        """Kill whatever is left of the members and what they started, and read what is still in the pipes."""
        for member in self._running():
            member.kill()
            while member.poll() is None:
                time.sleep(0.01)
        self.drain()
        for stream in self._open_streams():
            self.drop(stream)
        self._streams.close()

    def drain(self) -> None:
        """Read what those that have ended left in the pipes; half a second at most."""
        last = time.monotonic() + _DRAIN_S
        while self._pump(0.05) and time.monotonic() < last:
            pass

    def note_signal(self, signum: int, _frame: FrameType | None = None) -> None:
        """Signal handler: remember it for the loop."""
        self._signals.append(_PASSED_ON_AS.get(signal.Signals(signum), signum))

    def end_members(self) -> None:
        """Tell all members to end because of a failure, and kill them after the grace; once."""
        if self._kill_at is not None:
            return
        self._kill_at = time.monotonic() + self._grace_s
        for member in self._running():
            member.end()

    def give_up(self, reason: str) -> None:
        """Kill all members; the first reason is the one that is told."""
        self.gave_up = self.gave_up or reason
        for member in self._running():
            member.kill()

    @contextmanager
    def signals_noted(self) -> Iterator[None]:
        """Take signals while the block runs; those that are ignored (nohup, `&`) stay ignored."""
        give_back = take_signals((*STOP_SIGNALS, signal.SIGWINCH), self.note_signal)
        try:
            yield
        finally:
            give_back()

    def _pump(self, wait_s: float) -> bool:
        """Take what is there, waiting up to `wait_s` for some. False when none will come."""
        if not self._streams.get_map():
            time.sleep(wait_s)
            return False
        for key, _ in self._streams.select(wait_s):
            if not key.data.pump():
                self.drop(key.data)
        return True

    def _open_streams(self) -> Sequence[Stream]:
        return [key.data for key in self._streams.get_map().values()]

    def _running(self) -> list[AnyMember]:
        return [member for member in self.members if member not in self.ended]

    def _note_ended(self) -> None:
        for member in self._running():
            if member.poll() is not None:
                self.ended.append(member)
                member.kill()  # what it started and did not end
                self._on_end(member)

    def _pass_signals_on(self) -> None:
        while self._signals:
            signum = self._signals.pop(0)
            if signum == signal.SIGWINCH:
                for stream in self._open_streams():
                    stream.follow_window_size()
            elif self.stop_signal is None:
                self.stop_signal, self._stopped_at = signum, time.monotonic()
                for member in self._running():
                    member.stop(signum)
            elif time.monotonic() > self._stopped_at + REPEAT_S:
                self.give_up(f"killed by a second signal ({signal_name(signum)}); what was not saved is lost")

    def _end_after_failure(self) -> None:
        now = time.monotonic()
        running = self._running()
        if self._kill_at is None and any(member.has_failed() for member in self.members):
            self.end_members()
        elif self._kill_at is not None and now > self._kill_at:
            for member in running:
                member.kill()
        elif self._give_up_at is not None and now > self._give_up_at and running:
            names = ", ".join(member.name for member in running)
            self.give_up(f"the job did not end within {self._timeout_s:g} s; ranks still running: {names}")
