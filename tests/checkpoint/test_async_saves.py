"""Checkpoints written behind training are those that training would have waited for, one at a time."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from async_cases import hashes, train_on_a_slow_disk
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.checkpoint.in_flight import _Act
from megatune.checkpoint.snapshot import judge_memory

pytestmark = pytest.mark.world
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
GIB = 2**30


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("async") / "run.yaml",
        write_model_with_tokenizer(session_folder, **DROPOUT),
        data={"validation": None},
        train={"max_steps": 8, "gradient_accumulation_steps": 1, "warmup_steps": 0},
        checkpoint={"save_steps": 3, "export_at_end": False, "async": True},
    )


Start = Callable[..., list[tuple[str, int]]]


@pytest.fixture
def start(worlds: Worlds, run_file: Path, tmp_path: Path) -> Start:
    def act(*overrides: str, ranks: int = 4, steps: int = 2, faults: dict[str, str] | None = None) -> Any:
        given = [f"train.output_dir={tmp_path / 'run'}", *overrides]
        return worlds.run(ranks, train_on_a_slow_disk, str(run_file), given, steps, faults or {})

    return act


def events(run: Path) -> list[tuple[str, int]]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(entry["event"], entry["step"]) for entry in entries if entry["event"] in ("step", "save")]


@pytest.mark.parametrize(("device", "used"), [("cuda:3", ["cuda:3", "checkpoint"]), ("cpu", ["checkpoint"])])
def test_the_thread_of_a_save_is_on_the_ranks_own_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, used: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: seen.append(str(own)))

    act = _Act(lambda: seen.append(threading.current_thread().name), torch.device(device))
    act.wait(10)

    assert act.is_done
    assert seen == used


@pytest.mark.parametrize("copying", ["at once", "when the next update is due"])
def test_the_bytes_are_those_of_a_save_that_training_waited_for(
    worlds: Worlds, run_file: Path, start: Start, tmp_path: Path, copying: str
) -> None:
    waited = tmp_path / "waited"
    overrides = [f"train.output_dir={waited}", "checkpoint.async=false"]
    ended = worlds.run(4, train_on_a_slow_disk, str(run_file), overrides, 0, {})
    assert {words for words, _ in ended} == {"no error, exit code 0"}

    faults = {} if copying == "at once" else {"slow copy": ""}
    assert {words for words, _ in start(faults=faults)} == {"no error, exit code 0"}

    told = events(tmp_path / "run")
    assert told.index(("save", 3)) > told.index(("step", 5)), "training went on while step 3 was written"
    expected, found = hashes(waited), hashes(tmp_path / "run")
    assert sorted(found) == ["step-00000003", "step-00000006", "step-00000008"]
    differing = [
        (step, name)
        for step, files in expected.items()
        for name, digest in files.items()
        if found[step].get(name) != digest
    ]
    assert differing == [], "weights, moments, generators, place in the data: all as at the step"
    assert [files.keys() for files in found.values()] == [files.keys() for files in expected.values()]
    behind = metrics_of(tmp_path / "run", "save")[0]
    assert 0 < behind["blocked_seconds"] < behind["seconds"]
    assert all(entry["blocked_seconds"] >= entry["seconds"] > 0 for entry in metrics_of(waited, "save"))


def test_a_new_save_waits_for_the_old_one(start: Start, tmp_path: Path) -> None:
    ended = start("checkpoint.save_steps=1", steps=3)

    assert set(ended) == {("no error, exit code 0", 1)}, "no rank ever writes two checkpoints at once"
    told = events(tmp_path / "run")
    saves = [step for event, step in told if event == "save"]
    assert saves == list(range(1, 9))
    for step in range(2, 9):
        assert told.index(("save", step - 1)) < told.index(("save", step))


def test_what_is_in_flight_at_a_signal_is_finished_and_the_step_of_the_signal_saved(
    start: Start, tmp_path: Path
) -> None:
    ended = start(faults={"signal in step 4 to rank 3": "SIGTERM"}, steps=100)

    assert {words for words, _ in ended} == {"no error, exit code 75"}
    assert sorted(hashes(tmp_path / "run")) == ["step-00000003", "step-00000005"]
    assert (tmp_path / "run" / "latest").read_text() == "step-00000005\n"


def test_a_rollback_goes_back_to_the_checkpoint_that_was_in_flight(start: Start, tmp_path: Path) -> None:
    ended = start("health.on_nonfinite=rollback", faults={"nan in step 5": ""}, steps=100)

    assert {words for words, _ in ended} == {"no error, exit code 0"}
    (fault,) = metrics_of(tmp_path / "run", "fault")
    assert (fault["step"], fault["back_to_step"], fault["skipped_sequences"]) == (5, 3, 4)
    assert sorted(hashes(tmp_path / "run")) == ["step-00000003", "step-00000006", "step-00000008"]


def test_bad_losses_end_a_run_when_what_was_in_flight_is_saved(start: Start, tmp_path: Path) -> None:
    (words,) = {words for words, _ in start(faults={"nan in step 5": ""}, steps=100)}

    assert words.startswith("MegatuneError: step 5: loss nan")
    assert f"start again to go on from {tmp_path}/run/checkpoints/step-00000003" in words
    assert sorted(hashes(tmp_path / "run")) == ["step-00000003"]


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_disk_that_refuses_behind_training_is_told_at_the_next_step_and_met_as_asked(
    start: Start, tmp_path: Path, on_failure: str
) -> None:
    faults = {"step-00000003 rank 2": str(errno.ENOSPC)}
    (words,) = {words for words, _ in start(f"checkpoint.on_failure={on_failure}", faults=faults)}

    kept = sorted(hashes(tmp_path / "run"))
    if on_failure == "stop":
        assert words.startswith("SaveError: the checkpoint could not be saved; older ones are untouched")
        assert "rank 2: [Errno 28] No space left on device" in words
        assert kept == []
        assert events(tmp_path / "run")[-1] in [("step", 5), ("step", 6)], "not only at the end"
        return
    assert words == "no error, exit code 0"
    assert kept == ["step-00000006", "step-00000008"]
    (failed,) = metrics_of(tmp_path / "run", "save_failed")
    assert failed["step"] == 3
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp"))


def test_the_best_checkpoint_is_never_one_whose_write_failed(
    run_file: Path, start: Start, tmp_path: Path
) -> None:
    # Held-out losses rise or stay, so that the first save would be the best one for ever.
    held_out = ["data.validation=" + str(run_file.parent / "valid.jsonl"), "evaluate.eval_steps=3"]
    frozen = ["train.learning_rate=0.0", "checkpoint.on_failure=continue", *held_out]
    start(*frozen, faults={"step-00000003 rank 0": str(errno.EIO)})

    assert (tmp_path / "run" / "best").read_text() == "step-00000006\n"
    training = json.loads((tmp_path / "run/checkpoints/step-00000008/training.json").read_text())
    assert training["state"]["best_step"] == 6


@pytest.mark.parametrize(
    ("asked", "needed", "available", "is_async", "words"),
    [
        ("auto", 4, 8, True, "takes 4.00 GiB of the 8.00 GiB"),
        ("auto", 5, 8, False, "at most 50% may be taken"),
        ("auto", 4, None, False, "does not say how much memory is left"),
        (True, 5, 8, True, "checkpoint.async is true, though"),
        (True, 4, None, True, "checkpoint.async is true, though"),
        (False, 4, 64, False, "checkpoint.async is false"),
    ],
)
def test_the_host_with_least_room_decides_and_the_reason_is_told(
    asked: bool | str, needed: int, available: int | None, is_async: bool, words: str
) -> None:
    left = None if available is None else available * GIB
    mode = judge_memory(asked, {"roomy": GIB, "tight": needed * GIB}, {"roomy": 100 * GIB, "tight": left})
    assert mode.is_async == is_async
    assert words in str(mode)
    assert str(mode).startswith(
        "checkpoints are written behind training" if is_async else "checkpoints are written while"
    )
