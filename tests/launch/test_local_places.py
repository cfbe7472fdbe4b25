"""`run_ranks`: what every rank is told, and what stays behind on the machine."""

import os
import socket
import sys
from pathlib import Path

import pytest

from megatune.errors import LaunchError
from megatune.launch.local import run_ranks


def test_every_rank_gets_its_place_and_the_job_ends_with_0(launch):
    launcher = launch(
        """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR EXTRA".split()
print("place", *(os.environ[name] for name in names), int(os.environ["MASTER_PORT"]) > 0)
""",
        num_ranks=3,
        extra_env={"EXTRA": "e"},
    )
    launcher.finish()
    assert launcher.process.returncode == 0
    for rank in range(3):
        assert f"place {rank} {rank} 3 3 127.0.0.1 e True" in launcher.log(rank)
    assert launcher.result()["failure_text"] == ""


def test_the_cores_are_shared_out_among_the_ranks(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("megatune.launch.local_ranks.count_cpus", lambda: 12)
    show = [sys.executable, "-c", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"]
    run_ranks(show, num_ranks=5, log_dir=tmp_path, echo_rank=None)
    assert "threads 2" in (tmp_path / "rank-00004.log").read_text()


def test_a_port_taken_by_another_program_at_the_last_moment_is_replaced(launch):
    launcher = launch(
        """
port = int(os.environ["MASTER_PORT"])
with open("ports", "a") as file:
    file.write(f"{port}\\n")
if len(Path("ports").read_text().split()) == 1:
    raise RuntimeError(f"The server socket has failed to listen. port: {port}, name: EADDRINUSE")
""",
        num_ranks=1,
    )
    _, err = launcher.finish()
    assert launcher.process.returncode == 0
    first, second = (launcher.folder / "ports").read_text().split()
    assert first != second
    assert f"another program took port {first} first" in err


def test_an_address_in_use_elsewhere_does_not_start_the_ranks_again(launch):
    launcher = launch("raise OSError('port 80: address already in use')", num_ranks=1)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert launcher.log(0).count("rank 0 of 1 on") == 1


def test_a_program_that_does_not_exist_is_told_and_nothing_stays(tmp_path):
    with pytest.raises(LaunchError, match="cannot start /no/such/python"):
        run_ranks(["/no/such/python"], num_ranks=2, log_dir=tmp_path)


def test_a_log_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot make the log folder"):
        run_ranks(["true"], num_ranks=1, log_dir=tmp_path / "file" / "logs")


def test_no_file_or_socket_stays_open_after_a_run(tmp_path):
    def open_files() -> list[str]:
        links = [Path(f"/proc/self/fd/{fd}") for fd in range(3, 256) if is_open(fd)]
        return sorted(str(link.readlink()) for link in links)

    before = open_files()
    for _ in range(3):
        run_ranks(["true"], num_ranks=2, log_dir=tmp_path)
    assert open_files() == before


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_port_of_a_run_is_free_for_rank_0_to_listen_on(launch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        launcher = launch(
            "import socket\nif rank == 0: socket.create_server(('', int(os.environ['MASTER_PORT']))).close()",
            first_port=taken,
        )
        launcher.finish()
    assert launcher.process.returncode == 0
