"""The folder of `parallel.offload: nvme:/path` on this machine."""

import tempfile
from pathlib import Path

from megatune.config import Run
from megatune.files import IN_MEMORY, file_system_type


def disk_problems(run: Run) -> list[str]:
    """Why the states of `run` cannot lie in the folder it names; empty where they can, or where it names none."""
    folder = run.parallel.disk_folder
    problem = None if folder is None else _problem_of(folder)
    return [] if problem is None else [f"parallel.offload = nvme:{folder}: {problem}"]


def _problem_of(folder: Path) -> str | None:
    if not folder.is_dir():
        return "there is no such folder here. Give one that every node has, on a local disk."
    kind = file_system_type(folder)
    if kind in IN_MEMORY:
        return (
            f"that is in memory ({kind}), not on a disk. Give a folder of a local disk, or use "
            "parallel.offload=optimizer."
        )
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"no file can be made there ({error.strerror}). Give a folder of a local disk that you may write to."
    return None
