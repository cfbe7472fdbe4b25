"""What NCCL was asked to do, from torch's flight recorder: each rank's last collectives, on GPUs.

torch keeps them in memory, writes them when a collective times out, and when `1` is written into a pipe that
it opens. The files are pickles: they are copied into a crash bundle and never read here; torch's `torchfrtrace`
shows them.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import xxhash

_PREFIX = "nccl-trace-rank-"
_NUM_COLLECTIVES = 2000


def recorder_environment(folder: Path) -> dict[str, str]:
    """What torch must find in a rank's environment before its groups are made; traces go into `folder`.

    By the names of torch 2.13 (FlightRecorder.hpp, ProcessGroupNCCL.hpp).
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(_NUM_COLLECTIVES),
        "TORCH_FR_DUMP_TEMP_FILE": str(folder.absolute() / _PREFIX),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": _pipe_prefix(folder),
    }


def _pipe_prefix(folder: Path) -> str:
    """On a disk of this host: torch ends a rank that cannot make its pipe, and shared disks may have none."""
    run = xxhash.xxh3_64(str(folder.absolute()).encode()).hexdigest()
    return str(Path(tempfile.gettempdir()) / f"megatune-{os.getuid()}-{run}-")


def pipe_path(folder: Path, rank: int) -> Path:
    """The pipe of a rank of this host."""
    return Path(f"{_pipe_prefix(folder)}{rank}.pipe")


def ask_for_trace(folder: Path, rank: int) -> bool:
    """Have a rank of this host write its trace. Returns whether anybody listens: without NCCL nobody does."""
    try:
        pipe = os.open(pipe_path(folder, rank), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # there is no pipe, or nobody reads it
        return False
    try:
        with suppress(OSError):
            os.write(pipe, b"1\n")
            return True
        return False
    finally:
        os.close(pipe)


def traces(folder: Path) -> list[Path]:
    """The traces that ranks have written into `folder`."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_file() and path.stat().st_size)


def forget_traces(folder: Path) -> None:
    """Take away those of an earlier start, and its pipes on this host."""
    pipes = Path(_pipe_prefix(folder))
    for path in (*folder.glob(f"{_PREFIX}*"), *pipes.parent.glob(f"{pipes.name}*.pipe")):
        path.unlink(missing_ok=True)
