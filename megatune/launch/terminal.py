"""Copies what one rank prints to where it is shown and to the rank's log.

Where our output is a terminal the rank gets a pseudo-terminal, so that it may draw a progress
bar; otherwise a pipe, and the rank prints plain lines.
"""

import errno
import fcntl
import os
import pty
import select
import struct
import termios
from typing import Protocol

from megatune.launch.rank_logs import LineCleaner

_READ_BYTES = 64 * 1024


class Target(Protocol):
    """Where an echoed rank is shown."""

    @property
    def is_terminal(self) -> bool:
        """Whether the rank may draw."""

    def write(self, data: bytes) -> None:
        """Show `data`. Raises OSError when nobody reads it any more."""

    def window_size(self) -> bytes | None:
        """The size of the terminal, as the kernel gives it; None where there is none."""


class Screen:
    """One of this process's own outputs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_terminal = _is_terminal(fd)

    def write(self, data: bytes) -> None:
        """Show `data`. Raises OSError when nobody reads it any more."""
        _write_all(self._fd, data)

    def window_size(self) -> bytes | None:
        """The size of the terminal; None where there is none, or when it was closed."""
        try:
            return fcntl.ioctl(self._fd, termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))
        except OSError:
            return None


class EchoedStream:
    """One output of the echoed rank. `child_fd` is the rank's end; close it once the rank has started."""

    def __init__(self, target: Target, log_fd: int) -> None:
        self.is_terminal = target.is_terminal
        self._target: Target | None = target  # None once nobody reads it
        self._log = os.dup(log_fd)
        self._log_works = True
        self._cleaner = LineCleaner() if self.is_terminal else None
        self.fd, self.child_fd = _open_terminal() if self.is_terminal else os.pipe()
        self.follow_window_size()

    def follow_window_size(self) -> None:
        """Give the rank's terminal the size of ours."""
        if not self.is_terminal or self._target is None:
            return
        size = self._target.window_size()
        if size is not None:  # None: the next write notices and says so
            fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)

    def close_child_end(self) -> None:
        """Let the end of the rank be the end of the stream."""
        os.close(self.child_fd)

    def pump(self) -> bool:
        """Copy what the rank has printed; False at its end. Call it when `fd` is readable."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:  # how a pseudo-terminal says that its other end is closed
                raise
            data = b""
        self._echo(data)
        self._write_log(self._cleaner.feed(data) if self._cleaner else data)
        return bool(data)

    def close(self) -> None:
        """Write an unfinished last line to the log and give up the stream."""
        if self._cleaner:
            self._write_log(self._cleaner.finish())
        os.close(self.fd)
        os.close(self._log)

    def _echo(self, data: bytes) -> None:
        if self._target is None:
            return
        try:
            self._target.write(data)
        except OSError as error:
            # Our reader is gone (a closed terminal, `| head`): training goes on, the log has it all.
            self._target = None
            self._write_log(
                f"[megatune: output no longer shown on the terminal: {error.strerror}]\n".encode()
            )

    def _write_log(self, data: bytes) -> None:
        if not self._log_works:
            return
        try:
            _write_all(self._log, data)
        except OSError as error:
            # A full disk must not stop a run for the sake of its log; say it where it can be seen.
            self._log_works = False
            self._echo(
                f"megatune: the log of this rank can no longer be written: {error.strerror}\n".encode()
            )


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _open_terminal() -> tuple[int, int]:
    ours, childs = pty.openpty()
    attributes = termios.tcgetattr(childs)
    attributes[1] &= ~termios.OPOST  # our own terminal turns \n into \r\n already
    termios.tcsetattr(childs, termios.TCSANOW, attributes)
    return ours, childs


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # a terminal or pipe that its owner made non-blocking
            select.select([], [fd], [])
