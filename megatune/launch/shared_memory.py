"""What killed ranks leave in /dev/shm: memory that nobody gives back until the machine is started again.

torch names its files after the process that made them; NCCL does not, so that one of its files is only taken
for a leftover when it is younger than the start and no process has it open or mapped.
"""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_SHM = Path("/dev/shm")
_OF_TORCH = re.compile(r"torch_(\d+)_")
_OF_NCCL = re.compile(r"nccl-\w+")


def remove_leftovers(pids: Collection[int], *, since_s: float, shm: Path = _SHM) -> list[Path]:
    """Remove what the ended processes `pids` left, and unused files of NCCL younger than `since_s`.

    since_s: seconds since 1970. Files of other users are left alone. Returns what was removed.
    """
    removed = []
    suspects = [path for path in _own_files(shm) if _is_suspect(path, pids, since_s)]
    used = _files_in_use() if any(_OF_NCCL.fullmatch(path.name) for path in suspects) else set()
    for path in suspects:
        if str(path) in used:
            continue
        with suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    return removed


def _own_files(shm: Path) -> list[Path]:
    if not shm.is_dir():
        return []
    found = []
    for path in shm.iterdir():
        with suppress(FileNotFoundError):
            if path.is_file() and path.lstat().st_uid == os.getuid():
                found.append(path)
    return found


def _is_suspect(path: Path, pids: Collection[int], since_s: float) -> bool:
    of_torch = _OF_TORCH.match(path.name)
    if of_torch:
        return int(of_torch.group(1)) in pids
    with suppress(FileNotFoundError):
        return bool(_OF_NCCL.fullmatch(path.name)) and path.lstat().st_mtime >= since_s
    return False


def _files_in_use() -> set[str]:
    """Paths that some process of this user has open or mapped."""
    used: set[str] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # ended, or another user's
            maps = (process / "maps").read_text(errors="replace")
            used |= {
                line.split(maxsplit=5)[5]
                for line in maps.splitlines()
                if line.count(" ") >= 5 and "/" in line
            }
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    used.add(str(descriptor.readlink()))
    return used
