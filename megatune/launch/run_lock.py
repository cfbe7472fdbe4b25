"""Only one training at a time writes into a run folder.

A lock of the file system, which ends with the process that holds it, however that ends: nothing is left over that
somebody would have to remove. NFS and Lustre pass it on to other hosts; where a file system has none, none is held.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from megatune.errors import ConfigError
from megatune.launch.run_folder import RunFolder

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_ENDING_S = 5.0
"""A rank that was told to end may take this long; it is waited for."""
_LEASE_S = 300.0
"""A file server gives back the locks of a host that is gone after minutes: 90 s with NFS version 4. A job that is
queued again because of that host must not fail for them."""


@contextmanager
def training_alone(
    folder: RunFolder,
    *,
    waits_s: tuple[float, float] = (_ENDING_S, _LEASE_S),
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Hold the run folder for this process, which trains in it.

    waits_s: how long a process of this host, and one of another, may go on holding it. `say` is told when that is
    waited for. Raises ConfigError, with who holds it, when it is held after that.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a+", encoding="utf-8") as file:
        deadline: float | None = None
        while not _take(file):
            holder = _holder(file)
            if deadline is None:
                wait_s = waits_s[0 if holder.startswith(f"{socket.gethostname()} ") else 1]
                deadline = time.monotonic() + wait_s
                say(f"{folder.path} is in use by {_words(holder)}; waiting {wait_s:.0f} s for its end")
            if time.monotonic() > deadline:
                raise ConfigError(
                    [
                        f"{folder.path} is being trained in by {_words(holder)}. Let that end, or stop it (a job "
                        "with `megatune cancel`, a command with Ctrl-C), or give this run another train.output_dir"
                    ],
                    source="train.output_dir",
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
        file.flush()
        yield


def _take(file: IO[str]) -> bool:
    """Whether this process has the lock now, or there are none here."""
    try:
        # Of the process and not of the open file: a child that a fork makes does not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _words(holder: str) -> str:
    host, _, pid = holder.partition(" ")
    return f"process {pid} on {host}" if pid else "another process"
