import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatune.config import Run
from megatune.errors import LaunchError
from megatune.launch import extensions
from megatune.launch.build_leftovers import end_orphaned_compilers, remove_stale_locks
from megatune.launch.extensions import ensure_built, extension_folder, needed_ops
from megatune.launch.ranks import extension_environment

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
# What DeepSpeed does for a build, in small: torch's lock (O_EXCL, kept open), a library, unlock.
BUILD = """
import os, sys, time
from pathlib import Path
folder = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "op"
folder.mkdir(exist_ok=True)
lock = os.open(folder / "lock", os.O_CREAT | os.O_EXCL)
with open(folder.parent / "builds", "a") as builds:
    builds.write(f"{os.getpid()}\\n")
time.sleep(float(sys.argv[1]))
(folder / "op.so").write_text("code")
os.close(lock)
(folder / "lock").unlink()
"""
START = """
import json, sys
from pathlib import Path
from megatune.launch.extensions import ensure_built
ensure_built(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


def build_command(seconds: float = 0.0) -> list[str]:
    return [sys.executable, "-c", BUILD, str(seconds)]


def num_builds(folder: Path) -> int:
    return len((folder / "builds").read_text().split())


def start_elsewhere(folder: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(build_command(seconds)), str(folder)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(file: Path) -> None:
    end = time.monotonic() + 15
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not appear"
        time.sleep(0.01)


def test_ops_are_built_once_and_the_build_is_announced(tmp_path):
    said: list[str] = []
    for _ in range(3):
        ensure_built(build_command(), tmp_path, say=said.append)
    assert num_builds(tmp_path) == 1
    assert said == ["compiling the DeepSpeed ops of this run, once for this environment: a minute or two"]


def test_a_build_finds_ninja_in_an_environment_that_was_not_activated(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    find = "import shutil; assert shutil.which('ninja')"
    ensure_built([sys.executable, "-c", find], tmp_path)

    # The ranks too: torch asks for it to load what is built.
    assert shutil.which("ninja", path=extension_environment(tmp_path)["PATH"])


def test_the_users_programs_go_before_those_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"/users/gcc/bin:{Path(sys.executable).parent}:/usr/bin")

    assert extension_environment(tmp_path)["PATH"] == f"/users/gcc/bin:{Path(sys.executable).parent}:/usr/bin"
    monkeypatch.setenv("PATH", "/users/gcc/bin:/usr/bin")
    assert extension_environment(tmp_path)["PATH"] == f"/users/gcc/bin:/usr/bin:{Path(sys.executable).parent}"


def test_a_planted_lock_is_removed_with_a_notice_instead_of_waiting_for_ever(tmp_path):
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "lock").touch()
    said: list[str] = []
    ensure_built(build_command(), tmp_path, say=said.append, timeout_s=20)
    assert num_builds(tmp_path) == 1
    assert [text for text in said if "op/lock" in text and "killed" in text]


def test_a_lock_left_after_the_build_is_removed_too(tmp_path):
    ensure_built(build_command(), tmp_path)
    (tmp_path / "op" / "lock").touch()  # a rank was killed while it loaded the op
    ensure_built(build_command(), tmp_path)
    assert not (tmp_path / "op" / "lock").exists()
    assert num_builds(tmp_path) == 1


def test_a_lock_that_a_living_process_holds_is_left_alone(tmp_path):
    (tmp_path / "op").mkdir()
    hold = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); sys.stdin.read()"
    lock = tmp_path / "op" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert remove_stale_locks(tmp_path) == []
        holder.kill()
    assert remove_stale_locks(tmp_path) == [lock]


def test_a_builder_that_is_still_ending_is_waited_for(tmp_path):
    (tmp_path / "op").mkdir()
    hold = (
        "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(1)"
    )
    lock = tmp_path / "op" / "lock"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert remove_stale_locks(tmp_path) == [lock]


def test_a_start_that_was_killed_during_the_build_does_not_stop_the_next(tmp_path):
    first = start_elsewhere(tmp_path, seconds=600)
    wait_for(tmp_path / "builds")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    ensure_built(build_command(), tmp_path, timeout_s=20)
    assert (tmp_path / "op" / "op.so").exists()
    assert num_builds(tmp_path) == 2


def test_compilers_of_a_killed_build_are_ended_and_a_shell_in_the_folder_is_not(tmp_path):
    (tmp_path / "op").mkdir()
    # setsid makes the first sh a session leader; it ends, the sleep goes on without it.
    orphan = f"cd {tmp_path}/op; setsid sh -c 'sleep 600 & echo $! > ../pid'"
    subprocess.run(["sh", "-c", orphan], check=True)
    shell = subprocess.Popen(["sleep", "600"], cwd=tmp_path / "op", start_new_session=True)
    pid = int((tmp_path / "pid").read_text())
    try:
        assert end_orphaned_compilers(tmp_path) == [pid]
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.wait()
    assert end_orphaned_compilers(tmp_path) == []


def test_compilers_are_orphans_also_while_their_dead_leader_is_not_collected(tmp_path):
    (tmp_path / "op").mkdir()
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $! > ../pid.new; mv ../pid.new ../pid; wait"],
        cwd=tmp_path / "op",
        start_new_session=True,
    )
    wait_for(tmp_path / "pid")
    assert end_orphaned_compilers(tmp_path) == []  # its build is alive
    leader.kill()
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)  # dead, and not collected
    assert end_orphaned_compilers(tmp_path) == [int((tmp_path / "pid").read_text())]
    leader.wait()


def test_two_starts_at_once_build_once(tmp_path):
    starts = [start_elsewhere(tmp_path, seconds=0.3) for _ in range(3)]
    for start in starts:
        start.communicate()
        assert start.returncode == 0
    assert num_builds(tmp_path) == 1


def test_waiting_for_another_build_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "_NOTICE_EVERY_S", 0.1)
    first = start_elsewhere(tmp_path, seconds=1.0)
    wait_for(tmp_path / "builds")
    said: list[str] = []
    ensure_built(build_command(1.0), tmp_path, say=said.append)
    first.communicate()
    assert said
    assert all(text.startswith("waiting for another process") for text in said)
    assert num_builds(tmp_path) == 1


def test_waiting_for_another_build_ends(tmp_path):
    first = start_elsewhere(tmp_path, seconds=600)
    wait_for(tmp_path / "builds")
    with pytest.raises(LaunchError, match="another process has held"):
        ensure_built(build_command(), tmp_path, timeout_s=0.3)
    first.kill()
    first.communicate()


def test_a_failed_build_shows_the_compilers_words_and_is_tried_again(tmp_path):
    fail = [sys.executable, "-c", "import sys; print('fatal error: omp.h: No such file'); sys.exit(3)"]
    for _ in range(2):
        with pytest.raises(
            LaunchError, match=r"(?s)failed \(exit code 3\).*compiler.*python3-dev.*omp.h: No such file"
        ):
            ensure_built(fail, tmp_path)
    ensure_built(build_command(), tmp_path)
    assert num_builds(tmp_path) == 1


def test_a_build_that_hangs_is_ended_with_all_it_started(tmp_path):
    hang = f"echo $$ > {tmp_path}/pid; sleep 600 & echo $! >> {tmp_path}/pid; wait"
    with pytest.raises(LaunchError, match=r"did not end within 0.5 s"):
        ensure_built(["sh", "-c", hang], tmp_path, timeout_s=0.5)
    time.sleep(0.2)
    for pid in (tmp_path / "pid").read_text().split():
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or ") Z " in stat.read_text()


def test_a_library_that_was_deleted_is_built_again(tmp_path):
    ensure_built(build_command(), tmp_path)
    (tmp_path / "op" / "op.so").unlink()
    ensure_built(build_command(), tmp_path)
    assert num_builds(tmp_path) == 2


def test_another_build_command_is_not_taken_for_done(tmp_path):
    ensure_built(build_command(0.0), tmp_path)
    ensure_built(build_command(0.01), tmp_path)
    assert num_builds(tmp_path) == 2


@pytest.mark.parametrize(
    ("given", "named"), [(None, "Set MEGATUNE_CACHE"), ("/somewhere", "Set TORCH_EXTENSIONS_DIR")]
)
def test_a_folder_that_cannot_be_made_is_told_with_the_variable_that_names_it(
    tmp_path, monkeypatch, given, named
):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    if given:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", given)
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=named):
        ensure_built(build_command(), tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("policy", "offload", "num_gpus", "ops"),
    [
        ("zero3_zeropp", "none", 8, ["quantizer"]),
        ("zero3_zeropp", "optimizer", 8, ["cpu_adam", "quantizer"]),
        ("zero3_zeropp", "none", 0, []),  # the engine refuses such a run
        ("zero3_hpz", "none", 8, []),
    ],
)
def test_what_a_run_needs_is_built_before_its_ranks_start(policy, offload, num_gpus, ops, monkeypatch):
    sections = {
        "model": {"model_name_or_path": "m"},
        "data": {"train": "t.jsonl"},
        "train": {"output_dir": "r"},
    }
    run = Run.model_validate({**sections, "parallel": {"offload": offload}})
    asked = json.loads((DS_CONFIGS / f"{policy}.json").read_text())

    assert needed_ops(run, asked, num_gpus) == ops
    monkeypatch.setattr(extensions, "count_gpus", lambda: num_gpus)
    assert needed_ops(run, asked) == ops


def test_another_environment_gets_another_folder(tmp_path, monkeypatch):
    here = extension_folder(tmp_path)
    assert here == extension_folder(tmp_path)
    monkeypatch.setattr(sys, "prefix", "/another/venv")
    assert extension_folder(tmp_path) != here


def test_another_processor_gets_another_folder(tmp_path, monkeypatch):
    here = extension_folder(tmp_path)
    monkeypatch.setattr(extensions, "cpu_flags", lambda: "sse2")
    assert extension_folder(tmp_path) != here


def test_on_a_network_file_system_every_host_gets_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "file_system_type", lambda _folder: "nfs4")
    monkeypatch.setattr("socket.gethostname", lambda: "node01")
    first = extension_folder(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "node02")
    assert extension_folder(tmp_path) != first


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nserver:/h /home nfs4 rw 0 0\nserver:/x /home2 lustre rw 0 0\n")
    kinds = [extensions.file_system_type(Path(path), mounts) for path in ("/home/me/x", "/home2/me", "/tmp")]
    assert kinds == ["nfs4", "lustre", "ext4"]


def test_the_users_folder_for_extensions_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extension_folder().parent == tmp_path
