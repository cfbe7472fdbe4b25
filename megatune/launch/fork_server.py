"""Starts ranks as forks of one process that has imported everything, instead of one interpreter each.

torch, transformers and DeepSpeed take seconds of processor time to import, for every rank. The server is
a fork of the launcher from before its work, so it has no open process group, no OpenMP threads and no
GPU; it forks itself once a rank. Never used with GPUs: a fork of a process that has asked CUDA anything
cannot use it.
"""

import faulthandler
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from megatune.errors import LaunchError
from megatune.launch.devices import count_gpus
from megatune.launch.imports import uncollected
from megatune.launch.processes import Start, die_with_parent, start_process
from megatune.launch.ranks import replace_environment

_MESSAGE_BYTES = 64


class ForkServer:
    """A fork of this process that starts `python -m MODULE ...` commands by forking itself.

    It dies with this process, and what it started dies with it. Make it from the main thread, before
    anything here computes. `preload`: modules that it imports meanwhile.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended: dict[int, int] = {}
        self._has_ended = False
        _flush()
        launcher = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _serve_for(launcher, theirs, preload)
        theirs.close()

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> "ForkedProcess":
        """Start `command` as `start_process` would: in a session of its own, in the current folder.

        Raises LaunchError when it is not a module of this interpreter or when the server has ended.
        """
        module, *arguments = _module_of(command)
        request = {
            "module": module,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        fd = os.memfd_create("start")
        try:
            os.write(fd, json.dumps(request).encode())
            socket.send_fds(self._socket, [b"start"], [fd, stdout, stderr])
        except OSError:
            self._has_ended = True
        finally:
            os.close(fd)
        return ForkedProcess(self._next_started(), self)

    def close(self) -> None:
        """End the server, and with it whatever it started that still runs."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a process that was started here, negative for a signal; None while it runs."""
        while pid not in self._ended and self._take(wait=False) is not None:
            pass
        if self._has_ended:  # whatever ends it, the kernel kills what it has started
            return self._ended.setdefault(pid, -signal.SIGKILL)
        return self._ended.get(pid)

    def _next_started(self) -> int:
        while (message := self._take(wait=True)) is not None:
            if message[0] == "started":
                pid = int(message[1])
                self._ended.pop(pid, None)  # of an earlier process: the kernel gives numbers out again
                return pid
        raise LaunchError("the process that ranks are forked from has ended; its reason stands above")

    def _take(self, *, wait: bool) -> list[str] | None:
        """The next message; None when there is none yet, or no more."""
        if self._has_ended:
            return None
        try:
            data = self._socket.recv(_MESSAGE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._has_ended = True
            return None
        message = data.decode().split()
        if message[0] == "ended":
            self._ended[int(message[1])] = int(message[2])
        return message


@contextmanager
def rank_starts(preload: Sequence[str]) -> Iterator[Start]:
    """How to start ranks on this machine while the block runs: forks, or with GPUs an interpreter each."""
    if count_gpus():
        yield start_process
        return
    server = ForkServer(preload)
    try:
        yield server.start
    finally:
        server.close()


def _module_of(command: Sequence[str]) -> list[str]:
    """The module that `command` runs as a program, and its arguments."""
    python, *rest = command
    # A fork has this process's path, which `megatune` starts without the current folder.
    rest = rest[1:] if rest[:1] == ["-P"] else rest
    if python != sys.executable or rest[:1] != ["-m"]:
        raise LaunchError(f"cannot fork {python}: only `{sys.executable} -m MODULE` can be")
    return rest[1:]


class ForkedProcess:
    """What `ForkServer.start` started; as a `subprocess.Popen` to those who watch it."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid, self._server = pid, server

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._server.exit_code(self.pid)

    def send_signal(self, signum: int) -> None:
        """Send a signal; harmless once it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def _serve_for(launcher: int, launcher_socket: socket.socket, preload: Sequence[str]) -> NoReturn:
    """The server: never returns into the frames of the launcher, which it shares."""
    try:
        os.setsid()  # a Ctrl-C at the terminal is for the launcher alone
        die_with_parent(launcher)()
        with uncollected():  # the collector of a fork would otherwise copy every page it marks
            for module in preload:
                importlib.import_module(module)
        _serve(launcher_socket)
    except BaseException:
        traceback.print_exc()
        _flush()
    os._exit(1)


def _serve(launcher: socket.socket) -> None:
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting = selectors.DefaultSelector()
    waiting.register(launcher, selectors.EVENT_READ)
    waiting.register(wake_read, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is launcher:
                data, fds, _, _ = socket.recv_fds(launcher, _MESSAGE_BYTES, 3)
                if not data:
                    return
                _fork_rank(launcher, fds)
            else:
                with suppress(BlockingIOError):
                    os.read(wake_read, 4096)
        _tell_ends(launcher)


def _tell_ends(launcher: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        launcher.send(f"ended {pid} {os.waitstatus_to_exitcode(status)}".encode())


def _fork_rank(launcher: socket.socket, fds: list[int]) -> None:
    server = os.getpid()
    if os.fork() == 0:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            die_with_parent(server)()
            launcher.send(f"started {os.getpid()}".encode())
            launcher.close()
            code = _run(_become(fds))
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)
    for fd in fds:
        os.close(fd)


def _become(fds: list[int]) -> dict[str, Any]:
    """Take the place of a fresh interpreter: its outputs, environment and folder. Returns the request."""
    request_fd, stdout, stderr = fds
    with os.fdopen(request_fd, "rb") as file:
        file.seek(0)
        request: dict[str, Any] = json.load(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    replace_environment(request["environment"])
    os.chdir(request["folder"])
    # As PYTHONUNBUFFERED and PYTHONFAULTHANDLER do at the start of an interpreter.
    sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)
    faulthandler.enable(sys.stderr.fileno())
    return request


def _unbuffered(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _run(request: Mapping[str, Any]) -> int:
    """Run the module as `python -m` would. Returns the exit code."""
    sys.argv = ["-m", *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # as an interpreter: the end tells what ended it
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing: wait for threads
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
