"""A rank that stands still is named, with its phase, and the job ends."""

import os
import signal
from pathlib import Path

import pytest
from launcher_process import Launcher, is_alive, wait_until

from megatune.engine import meeting
from megatune.launch.checkpoints import newest_saved_step
from megatune.launch.hang import judge_hang
from megatune.launch.heartbeat import Beat, StillnessWatch, read_beat
from megatune.launch.progress import run_with_restarts
from megatune.launch.verdict import RanksResult

LIMIT_S = 2.0
"""Longer than ranks of a loaded machine stand still by themselves."""
LAUNCHER = """
import json, sys
from pathlib import Path
from megatune.launch.local import run_ranks
from megatune.launch.local_hangs import HangRule
from megatune.launch.run_folder import RunFolder
asked = json.loads(sys.argv[1])
rule = HangRule(folder=RunFolder(Path("run").absolute()), limit_s=asked.pop("limit_s"))
result = run_ranks([sys.executable, "rank.py"], log_dir=Path("logs"), hang_rule=rule, **asked)
Path("result.json").write_text(json.dumps(vars(result)))
sys.exit(result.exit_code)
"""

BEATING_RANK = """
from megatune.launch.heartbeat import Heart
from megatune.launch.stacks import offer_stacks
folder = Path("run/heartbeats")
heart = Heart(folder, rank)
offer_stacks(folder, rank)
step = 0
while True:
    step += 1
    for phase in ("data", "forward and backward", "optimizer step"):
        heart.beat(phase, step)
        Path(f"ready-{rank}").touch()
        # Nobody goes on without the others, as in a collective.
        while any(not Path(f"at-{step}-{phase}-{other}").exists() for other in range(world)):
            Path(f"at-{step}-{phase}-{rank}").touch()
            time.sleep(0.002)
    if step == 2 and os.environ.get("SAVES"):
        saved = Path("run/checkpoints/step-00000002"); saved.mkdir(parents=True, exist_ok=True)
        (saved / "manifest.json").touch()
"""


@pytest.fixture
def hanging(start_launcher):
    def start(num_ranks: int, **asked: object) -> Launcher:
        given = {"num_ranks": num_ranks, "grace_s": 1.0, "limit_s": LIMIT_S, **asked}
        return start_launcher(BEATING_RANK, given, code=LAUNCHER)

    return start


@pytest.mark.parametrize("frozen", range(5))
def test_the_rank_that_was_stopped_is_named_with_its_phase(hanging, frozen: int) -> None:
    launcher = hanging(5)
    launcher.wait_until_ready(5)
    pid = int((launcher.folder / f"pid-{frozen}").read_text())
    os.kill(pid, signal.SIGSTOP)
    launcher.finish()
    result = launcher.result()

    phase = read_beat(launcher.folder / "run" / "heartbeats", frozen).phase
    assert (result["failed_rank"], result["hung"], result["exit_code"]) == (frozen, True, 1)
    assert f"rank {frozen} on " in result["failure_text"]
    assert f", {phase} (it does not answer" in result["failure_text"]
    assert not any(map(is_alive, launcher.pids()))
    (bundle,) = (launcher.folder / "run" / "crash").iterdir()
    others = {f"stack-rank-{rank:05d}.txt" for rank in range(5) if rank != frozen}
    assert {path.name for path in bundle.iterdir()} == {"verdict.txt", "heartbeats.json", *others}
    assert "rank.py" in (bundle / min(others)).read_text()


def test_a_hang_after_a_save_ends_with_the_code_to_go_on(hanging, monkeypatch) -> None:
    monkeypatch.setenv("SAVES", "1")
    launcher = hanging(2)
    saved = launcher.folder / "run" / "checkpoints"
    wait_until(lambda: newest_saved_step(saved) == 2)
    os.kill(int((launcher.folder / "pid-1").read_text()), signal.SIGSTOP)
    launcher.finish()

    assert launcher.result()["exit_code"] == 75
    assert launcher.result()["failed_rank"] == 1


def test_a_planted_secret_is_in_no_file_of_the_bundle(hanging, monkeypatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "hf_planted_secret_value")
    launcher = hanging(2)
    launcher.wait_until_ready(2)
    os.kill(int((launcher.folder / "pid-0").read_text()), signal.SIGSTOP)
    launcher.finish()

    written = [path for path in (launcher.folder / "run").rglob("*") if path.is_file()]
    assert written
    assert not any(b"hf_planted_secret_value" in path.read_bytes() for path in written)


def beat(rank: int, *, phase: str = "data", number: int = 1) -> Beat:
    return Beat(rank=rank, host="n1", pid=1, step=3, phase=phase, number=number, time_s=0.0)


IN_A_COLLECTIVE = 'File "/x/torch/distributed/distributed_c10d.py", line 1 in all_reduce'


def test_of_ranks_that_answer_the_one_in_no_collective_is_named() -> None:
    stacks = {0: IN_A_COLLECTIVE, 1: 'File "/x/read.py", line 9 in read', 2: IN_A_COLLECTIVE}
    hang = judge_hang([beat(0), beat(1), beat(2)], stacks, 10.0)
    assert [suspect.rank for suspect in hang.suspects] == [1]


def test_a_rank_that_waits_at_shared_memory_is_in_a_collective() -> None:
    waiting = f'File "{meeting.__file__}", line 1 in meet'
    hang = judge_hang([beat(0), beat(1)], {0: 'File "/x/read.py", line 9 in read', 1: waiting}, 10.0)
    assert [suspect.rank for suspect in hang.suspects] == [0]


@pytest.mark.parametrize(
    "innermost",
    [
        "megatune/train/step.py",  # .tolist() of what the ranks have summed
        "megatune/engine/zero.py",  # float(norm)
        "deepspeed/runtime/utils.py",  # is_invalid_grad_norm
        "torch/cuda/streams.py",  # Stream.synchronize, in a hook of backward
    ],
)
def test_a_rank_whose_gpu_waits_for_another_is_in_a_collective(innermost) -> None:
    step = 'File "/x/megatune/train/step.py", line 7 in train_step'
    head = "Thread 0x00007f4a8f6856c0 (most recent call first):\n  "
    waiting = f'{head}File "/x/{innermost}", line 9 in wait\n  {step}\n'
    busy = f'{head}File "/x/read.py", line 9 in read\n  {step}\n'

    hang = judge_hang([beat(0), beat(1), beat(2)], {0: waiting, 1: busy, 2: waiting}, 10.0)

    assert [suspect.rank for suspect in hang.suspects] == [1]
    assert hang.reason == "the others wait for it in a collective"


def test_of_ranks_that_all_wait_the_one_that_came_least_far_is_named() -> None:
    beats = [beat(0, number=7), beat(1, number=6), beat(2, number=7)]
    hang = judge_hang(beats, dict.fromkeys(range(3), IN_A_COLLECTIVE), 10.0)
    assert [suspect.rank for suspect in hang.suspects] == [1]


def test_a_rank_is_overdue_after_its_limit_and_one_that_saves_after_twice_that() -> None:
    watch = StillnessWatch(10.0)
    beats = [beat(0), beat(1, phase="save"), beat(2, phase="ended")]
    assert watch.still(beats, 0.0) == []
    assert watch.still(beats, 10.0) == []
    assert [found.rank for found in watch.still(beats, 10.1)] == [0]
    assert [found.rank for found in watch.still(beats, 20.1)] == [0, 1]
    assert watch.still([beat(0, number=2)], 20.2) == []


def failing(folder: Path, saves: list[int], code: int = 1, **how: object):
    """A start that saves the next of `saves` and fails."""
    left = list(saves)

    def run_once() -> RanksResult:
        if left:
            target = folder / f"step-{left.pop(0):08d}"
            target.mkdir(exist_ok=True)
            (target / "manifest.json").touch()
        calls.append(1)
        return RanksResult(exit_code=code, failed_rank=0, failure_text="", **how)

    calls: list[int] = []
    return run_once, calls


@pytest.mark.parametrize(
    ("saves", "code", "how", "starts"),
    [
        ([1, 2, 3, 4], 1, {}, 3),
        ([1, 1], 1, {}, 2),
        ([], 1, {}, 1),
        ([1, 2], 2, {}, 1),
        ([1, 2], 75, {}, 1),
        ([1, 2, 3], 75, {"hung": True}, 3),
        ([1, 2], 1, {"stop_asked": True}, 1),
    ],
    ids=["at most 2", "nothing new", "nothing saved", "user's mistake", "stopped", "hung", "asked to stop"],
)
def test_ranks_are_started_again_only_when_that_can_help(
    tmp_path: Path, saves: list[int], code: int, how: dict[str, object], starts: int
) -> None:
    run_once, calls = failing(tmp_path, saves, code, **how)
    assert run_with_restarts(run_once, max_restarts=2, checkpoints=tmp_path).exit_code == code
    assert len(calls) == starts


def test_what_a_new_run_found_is_nothing_that_it_has_saved(tmp_path: Path) -> None:
    (tmp_path / "step-00000012").mkdir()
    (tmp_path / "step-00000012" / "manifest.json").touch()
    run_once, calls = failing(tmp_path, [])
    run_with_restarts(run_once, max_restarts=2, checkpoints=tmp_path, is_new_run=True)
    assert len(calls) == 1


def test_what_a_new_run_sets_aside_is_nothing_that_it_must_get_beyond(tmp_path: Path) -> None:
    for new, starts in ((False, 1), (True, 3)):
        folder = tmp_path / str(new)
        (folder / "step-00000100").mkdir(parents=True)
        (folder / "step-00000100" / "manifest.json").touch()
        run_once, calls = failing(folder, [101, 102] if new else [5, 6])
        run_with_restarts(run_once, max_restarts=2, checkpoints=folder, is_new_run=new)
        assert len(calls) == starts
