"""Compiled DeepSpeed ops: built once per environment, before any rank starts.

torch marks a build with a file named `lock`. A build that is killed leaves it behind, and every
later start then waits for it for ever, without a word. Here one process builds at a time under a
lock that the kernel drops with its owner, and a `lock` file that no process holds is removed.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatune.config import Run
from megatune.errors import LaunchError
from megatune.files import file_system_type, write_text_atomic
from megatune.launch import ranks
from megatune.launch.build_leftovers import end_orphaned_compilers, remove_stale_locks
from megatune.launch.devices import count_gpus, cpu_flags
from megatune.launch.processes import start_process
from megatune.plan.buckets import quantized_messages

STAMP_NAME = "built.json"
LOG_NAME = "build.log"
_OWN_LOCK_NAME = ".build.lock"
_NOTICE_EVERY_S = 10.0
_POLL_S = 0.1
_LOG_TAIL_LINES = 25
_SHARED_FILE_SYSTEMS = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "smb",
    "cifs",
    "afs",
    "fuse",
    "9p",
    "panfs",
    "wekafs",
)

Say = Callable[[str], None]


def needed_ops(run: Run, policy: Mapping[str, Any], num_gpus: int | None = None) -> list[str]:
    """Names of the DeepSpeed ops that must be compiled for `run` with its DeepSpeed policy.

    num_gpus: of a node; None asks this machine. Kernels of quantized messages exist for GPUs only.
    """
    is_adam = run.train.optimizer in ("adam", "adamw")
    ops = ["cpu_adam"] if run.parallel.offload != "none" and is_adam else []
    if quantized_messages(policy) and (count_gpus() if num_gpus is None else num_gpus):
        ops.append("quantizer")
    return ops


def extension_folder(base: Path | None = None) -> Path:
    """The folder for compiled ops of exactly this environment, which nothing else builds in.

    Its name depends on all that a compiled op depends on: this Python and its prefix, torch,
    deepspeed, the processor's instruction sets, and the host when the folder is on a network file
    system. `base`: a folder to make it in; else TORCH_EXTENSIONS_DIR, else megatune's cache.
    """
    base = base or ranks.extension_folder_override() or ranks.cache_folder() / "torch_extensions"
    parts = [sys.prefix, sys.version, platform.machine(), cpu_flags()]
    parts += [f"{name} {_version(name)}" for name in ("torch", "deepspeed")]
    if _is_on_shared_file_system(base):
        parts.append(socket.gethostname())
    return base / f"megatune-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"


def ensure_built(
    build_command: Sequence[str], folder: Path, *, timeout_s: float = 1800.0, say: Say | None = None
) -> None:
    """Have `build_command` build its ops in `folder`, unless that was done before.

    The command runs with TORCH_EXTENSIONS_DIR=`folder` and its output goes to `folder`/build.log.
    Several processes may call this at once: one builds, the others wait and say so every 10 s
    through `say` (standard error by default). Raises LaunchError when the build fails, does not
    end within `timeout_s` seconds, or the folder cannot be used.
    """
    say = say or _say_on_stderr
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    with _only_builder(folder, say, timeout_s):
        for lock in remove_stale_locks(folder):
            say(f"removed {lock}: a start that was killed had left it, and torch would wait for it for ever")
        if _is_built(build_command, folder):
            return
        end_orphaned_compilers(folder)
        _build(build_command, folder, timeout_s, say)
        _write_stamp(build_command, folder)


@contextlib.contextmanager
def _only_builder(folder: Path, say: Say, timeout_s: float) -> Iterator[None]:
    """Hold the folder's own lock, waiting up to `timeout_s` for another process to give it up."""
    try:
        handle = os.open(folder / _OWN_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        begun = time.monotonic()
        notice_at = begun + _NOTICE_EVERY_S
        while not _try_lock(handle, folder):
            waited_s = time.monotonic() - begun
            if waited_s > timeout_s:
                raise LaunchError(
                    f"another process has held {folder} for over {timeout_s:g} s to build DeepSpeed's ops. "
                    f"See {folder / LOG_NAME}; end that process (`fuser {folder / _OWN_LOCK_NAME}` finds it)."
                )
            if time.monotonic() >= notice_at:
                say(f"waiting for another process that builds DeepSpeed's ops in {folder} ({waited_s:.0f} s)")
                notice_at += _NOTICE_EVERY_S
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, folder: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # Lustre without -o flock, some NFS servers
        raise LaunchError(
            f"the file system of {folder} has no file locks ({error.strerror}). "
            f"Set {_named_by()} to a folder on a local disk."
        ) from error
    return True


def _build(build_command: Sequence[str], folder: Path, timeout_s: float, say: Say) -> None:
    say("compiling the DeepSpeed ops of this run, once for this environment: a minute or two")
    log = folder / LOG_NAME
    with log.open("wb") as output:
        process = start_process(
            build_command,
            environment=ranks.child_environment(ranks.extension_environment(folder)),
            stdout=output.fileno(),
            stderr=output.fileno(),
        )
        try:
            code = _wait_for_build(process, timeout_s, say)
        finally:
            _end_group(process)
    if code is None:
        raise LaunchError(f"building DeepSpeed's ops did not end within {timeout_s:g} s. Its output: {log}")
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise LaunchError(
            f"building DeepSpeed's ops failed (exit code {code}). Usually a C++ compiler "
            f"(g++ 9 or newer), ninja or Python's headers (python3-dev) are missing. All of its output: {log}\n{tail}"
        )


def _wait_for_build(process: subprocess.Popen[bytes], timeout_s: float, say: Say) -> int | None:
    begun = time.monotonic()
    while (waited_s := time.monotonic() - begun) < timeout_s:
        try:
            return process.wait(timeout=min(_NOTICE_EVERY_S, timeout_s - waited_s))
        except subprocess.TimeoutExpired:
            say(f"still building DeepSpeed's ops ({time.monotonic() - begun:.0f} s)")
    return None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the build with its compilers; nothing of it may write into the folder after we give up the lock."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write_stamp(build_command: Sequence[str], folder: Path) -> None:
    libraries = sorted(str(file.relative_to(folder)) for file in folder.glob("*/*.so"))
    write_text_atomic(
        folder / STAMP_NAME, json.dumps({"command": list(build_command), "libraries": libraries})
    )


def _is_built(build_command: Sequence[str], folder: Path) -> bool:
    """Whether the stamp is of this command and the libraries it names are all there still."""
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return bool(
        isinstance(stamp, dict)
        and stamp.get("command") == list(build_command)
        and all((folder / name).is_file() for name in stamp.get("libraries", []))
    )


def _is_on_shared_file_system(folder: Path) -> bool:
    return any(file_system_type(folder).startswith(name) for name in _SHARED_FILE_SYSTEMS)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "n/a"


def _named_by() -> str:
    """The variable that says where ops are built."""
    return "MEGATUNE_CACHE" if ranks.extension_folder_override() is None else "TORCH_EXTENSIONS_DIR"


def _unusable(folder: Path, error: OSError) -> LaunchError:
    return LaunchError(
        f"cannot write to {folder}, where DeepSpeed's ops are built: {error.strerror}. "
        f"Set {_named_by()} to a folder you can write to."
    )


def _say_on_stderr(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr, flush=True)
