"""What a killed build leaves behind: torch's lock file, and compilers that go on without their parent."""

import os
import signal
import time
from pathlib import Path

_TORCH_LOCK_NAME = "lock"  # torch/utils/cpp_extension.py: FileBaton(build_directory / "lock")
_DYING_S = 5.0


def find_stale_locks(folder: Path) -> list[Path]:
    """torch's lock files in the builds of `folder` that no living process of this machine holds.

    Its holder keeps the file open for as long as it holds the lock. So a lock that nobody has open,
    and that is still the same file after looking, can never be released.
    """
    locks = {lock: _identity(lock) for lock in folder.glob(f"*/{_TORCH_LOCK_NAME}")}
    held = _open_files() if locks else set()
    return [lock for lock, seen in locks.items() if seen and seen[:2] not in held and _identity(lock) == seen]


def remove_stale_locks(folder: Path) -> list[Path]:
    """Remove what `find_stale_locks` finds; returns it. Call it only while nobody else may build.

    The builder of a start that was killed ends with it, but not in the same moment: a lock that somebody holds is
    looked at again for some seconds.
    """
    last_look = time.monotonic() + _DYING_S
    while len(stale := find_stale_locks(folder)) < len(list(folder.glob(f"*/{_TORCH_LOCK_NAME}"))):
        if time.monotonic() > last_look:
            break
        time.sleep(0.2)
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def end_orphaned_compilers(folder: Path) -> list[int]:
    """End processes that still compile below `folder` for a build that was killed; returns their ids.

    ninja and the compilers outlive the process that started them and would write into the folder
    beside the next build. They are known by working there while the leader of their session is
    gone: somebody's shell in that folder is its own leader. Call it only while nobody may build.
    """
    orphans = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_orphan_below(entry, folder)]
    for pid in orphans:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended by itself
    last_look = time.monotonic() + _DYING_S
    while (
        any(_is_orphan_below(Path(f"/proc/{pid}"), folder) for pid in orphans)
        and time.monotonic() < last_look
    ):
        time.sleep(0.01)  # a killed process writes on until it is given the processor once more
    return orphans


def _is_orphan_below(process: Path, folder: Path) -> bool:
    try:
        works_here = (process / "cwd").readlink().is_relative_to(folder.resolve())
    except OSError:
        return False  # ended while we looked, or another user's process
    if not works_here:
        return False
    _, session = _state_and_session(process) or ("", process.name)
    leader = _state_and_session(process.with_name(session))
    return leader is None or leader[0] == "Z"  # a container without an init keeps the dead


def _state_and_session(process: Path) -> tuple[str, str] | None:
    """State letter and session of a folder of /proc; None when it has ended."""
    try:
        state, _parent, _group, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, session


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _open_files() -> set[tuple[int, int]]:
    """(device, inode) of every file that a process of this user on this machine has open."""
    found: set[tuple[int, int]] = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = link.stat()
        except OSError:
            continue  # ended or closed while we looked, or another user's process
        found.add((status.st_dev, status.st_ino))
    return found
