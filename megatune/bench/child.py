"""A program whose output is wanted: ended with all it started when its time is up, or ours."""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatune.errors import LaunchError
from megatune.launch.processes import kill_group, start_process
from megatune.launch.ranks import child_environment
from megatune.launch.shared_memory import remove_leftovers

_SHOWN_RANKS = 4


def output_of(
    command: Sequence[str],
    name: str,
    timeout_s: float,
    *,
    threads: int = 1,
    temporary: Path | None = None,
    logs: Path | None = None,
) -> str:
    """What `command` prints on standard output. It and all it started are gone when this returns or raises.

    threads: of each of its processes.
    temporary: where it puts its temporary files, for a program that may be killed before it removes them.
    logs: a folder where the output of ranks may be, for the words of a failure.
    Raises LaunchError when it fails or takes too long.
    """
    places = {} if temporary is None else {"TMPDIR": str(temporary)}
    since_s = time.time()
    with tempfile.TemporaryFile() as complaint:
        process = start_process(
            command,
            environment=child_environment({"OMP_NUM_THREADS": str(threads), **places}),
            stdout=subprocess.PIPE,
            stderr=complaint.fileno(),
        )
        try:
            text, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{name}: not done after {timeout_s:.0f} s") from None
        finally:
            kill_group(process)
            process.wait()
            remove_leftovers([process.pid], since_s=since_s)
        if process.returncode != 0:
            complaint.seek(0)
            end = _end_of(text + complaint.read(), 3000)
            ranks = sorted(logs.glob("rank-*.log"))[:_SHOWN_RANKS] if logs else []
            end += "".join(f"\n{log.name}:\n{_end_of(log.read_bytes(), 1000)}" for log in ranks)
            raise LaunchError(f"{name} ended with exit code {process.returncode}:\n{end}")
    return str(text.decode(errors="replace"))


def _end_of(output: bytes, num_chars: int) -> str:
    return output.decode(errors="replace")[-num_chars:]
