"""Killed ranks leave nothing in /dev/shm, and nothing of anybody else is taken away."""

import mmap
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatune.launch.shared_memory import remove_leftovers

SHM = Path("/dev/shm")
# What a rank has there when it is killed: torch's tensors, NCCL's channels, and files of no known kind.
RANK = """
shm = Path("/dev/shm")
for name in (f"torch_{os.getpid()}_77_0", f"nccl-{tag}{rank}", f"other-{tag}{rank}"):
    (shm / name).write_bytes(b"x" * 4096)
Path(f"ready-{rank}").touch()
wait_for(0, 1)
while not all(Path(f"ready-{other}").exists() for other in range(world)):
    time.sleep(0.01)
os.kill(os.getpid(), 9) if rank == 1 else sleep_through()
"""


@pytest.fixture
def tag() -> Iterator[str]:
    """A part of names in /dev/shm that nobody else has; what bears it is removed in the end."""
    name = uuid.uuid4().hex[:8]
    yield name
    for path in SHM.glob(f"*{name}*"):
        path.unlink()


def test_after_a_rank_was_killed_nothing_of_the_ranks_is_left(launch, tag: str) -> None:
    launcher = launch(f"tag = {tag!r}\n{RANK}")
    launcher.finish()

    assert launcher.process.returncode == 1
    for pid in launcher.pids():
        assert not list(SHM.glob(f"torch_{pid}_*"))
    assert not list(SHM.glob(f"nccl-{tag}*"))
    assert len(list(SHM.glob(f"other-{tag}*"))) == 2, "what is not known to be ours stays"


def test_what_is_older_in_use_or_another_jobs_stays(tmp_path: Path) -> None:
    names = ["nccl-old", "nccl-open", "nccl-mapped", "nccl-left", "torch_1_2_3", f"torch_{os.getpid()}_2_3"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * mmap.PAGESIZE)
    now = time.time()
    os.utime(tmp_path / "nccl-old", (now - 100, now - 100))
    with (tmp_path / "nccl-open").open("rb"), (tmp_path / "nccl-mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.close()

        removed = remove_leftovers([os.getpid()], since_s=now - 50, shm=tmp_path)
        mapped.close()

    assert sorted(path.name for path in removed) == ["nccl-left", f"torch_{os.getpid()}_2_3"]
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {path.name for path in removed}
