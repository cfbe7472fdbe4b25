"""A run that was stopped and goes on is the run that was never stopped, bit for bit."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics_of, train, train_failing, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.checkpoint.folders import newest_whole

pytestmark = pytest.mark.world

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
PRECISIONS = ["fp32", "bf16"]
ONE_PRECISION = pytest.mark.parametrize("runs", ["fp32"], indirect=True)
SAME_EVERY_TIME = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "target_tokens",
    "tokens",
    "skipped",
)


@dataclass(frozen=True)
class Runs:
    """The same run, uninterrupted and twice interrupted: by a signal, and by a kill after a save."""

    whole: Path
    signalled: Path
    killed: Path
    codes: list[int]
    cut_at: int


@pytest.fixture(scope="module")
def model(session_folder: Path) -> Path:
    return write_model_with_tokenizer(session_folder, **DROPOUT)


@pytest.fixture(scope="module", params=PRECISIONS)
def runs(
    request: pytest.FixtureRequest,
    worlds: Worlds,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    folder = tmp_path_factory.mktemp(f"resume-{request.param}")
    run_file = write_run(
        folder / "run.yaml",
        model,
        precision=request.param,
        evaluate={"eval_steps": 3},
        checkpoint={"export_at_end": False, "save_steps": 3},
    )
    whole, signalled, killed = (folder / name for name in ("whole", "signalled", "killed"))

    def start(output_dir: Path, interrupt: tuple[int, int] | None = None) -> int:
        (code,) = set(worlds.run(4, train, str(run_file), [f"train.output_dir={output_dir}"], interrupt))
        return code

    codes = [start(whole), start(signalled, (3, 5)), start(signalled)]
    shutil.copytree(whole, killed)  # as a kill leaves it: metrics further than the newest checkpoint
    num_steps = len(metrics_of(whole, "step"))
    for checkpoint in (killed / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > 3:
            shutil.rmtree(checkpoint)
    codes.append(start(killed))
    assert num_steps > 8
    return Runs(whole, signalled, killed, codes, cut_at=6)


def records(output_dir: Path, event: str, *names: str) -> list[dict[str, Any]]:
    return [{name: entry[name] for name in names} for entry in metrics_of(output_dir, event)]


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_exit_code_75(runs: Runs) -> None:
    assert runs.codes == [0, 75, 0, 0]
    (stopped, finished) = metrics_of(runs.signalled, "stop")
    assert (stopped["step"], stopped["exit_code"]) == (runs.cut_at, 75)
    assert finished["exit_code"] == 0
    assert (runs.signalled / "checkpoints" / f"step-{runs.cut_at:08d}").is_dir()


@pytest.mark.parametrize("way", ["signalled", "killed"])
def test_every_step_after_a_resume_is_bit_equal(runs: Runs, way: str) -> None:
    output_dir = getattr(runs, way)

    found, expected = (records(path, "step", *SAME_EVERY_TIME) for path in (output_dir, runs.whole))

    assert found == expected
    assert [entry["step"] for entry in found] == list(range(1, len(found) + 1)), (
        "steps are doubled or missing"
    )
    assert len({entry["loss"] for entry in found}) == len(found)


@pytest.mark.parametrize("way", ["signalled", "killed"])
def test_evaluations_after_a_resume_are_bit_equal_and_none_is_missing_or_doubled(
    runs: Runs, way: str
) -> None:
    names = ("step", "loss", "target_tokens")

    found = records(getattr(runs, way), "eval", *names)

    assert found == records(runs.whole, "eval", *names)
    assert [entry["step"] for entry in found[:3]] == [0, 3, 6]


@pytest.mark.parametrize("way", ["signalled", "killed"])
def test_weights_optimizer_and_generators_end_bit_equal(runs: Runs, way: str) -> None:
    newest = sorted((runs.whole / "checkpoints").iterdir())[-1]
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert sum(path.name.startswith("rank-") for path in files) == 8

    other = getattr(runs, way) / "checkpoints" / newest.name

    # manifest.json holds the hashes of all others, so it is compared as well.
    assert [path for path in files if (other / path).read_bytes() != (newest / path).read_bytes()] == []


@ONE_PRECISION
def test_a_finished_run_started_again_does_nothing_and_says_so(
    runs: Runs, worlds: Worlds, tmp_path: Path
) -> None:
    again = shutil.copytree(runs.whole, tmp_path / "again")
    before = metrics_of(again, "step"), metrics_of(again, "eval"), metrics_of(again, "save")

    run_file = runs.whole.parent / "run.yaml"
    assert set(worlds.run(4, train, str(run_file), [f"train.output_dir={again}"])) == {0}

    assert (metrics_of(again, "step"), metrics_of(again, "eval"), metrics_of(again, "save")) == before
    assert metrics_of(again, "stop")[-1]["reason"] == "all steps done"


@pytest.fixture
def saved(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the finished run, to break."""
    return Path(shutil.copytree(runs.whole, tmp_path / "saved"))


def fail(worlds: Worlds, runs: Runs, output_dir: Path, *overrides: str, ranks: int = 4) -> str:
    """The error that all ranks end with."""
    run_file = str(runs.whole.parent / "run.yaml")
    (words,) = set(worlds.run(ranks, train_failing, run_file, [f"train.output_dir={output_dir}", *overrides]))
    return str(words)


@ONE_PRECISION
@pytest.mark.parametrize("name", ["rank-00002.safetensors", "rank-00001.json", "training.json"])
def test_a_flipped_byte_is_found_by_all_ranks_and_the_run_goes_on_from_the_one_before(
    worlds: Worlds, runs: Runs, saved: Path, name: str
) -> None:
    damaged = flip(sorted((saved / "checkpoints").iterdir())[-1] / name)

    run_file = str(runs.whole.parent / "run.yaml")
    assert set(worlds.run(4, train, run_file, [f"train.output_dir={saved}"])) == {0}

    resumed = metrics_of(saved, "resume")[-1]
    assert resumed["step"] == 18
    assert resumed["passed_over"] == [f"{damaged} has changed since it was saved (its hash differs)."]
    assert records(saved, "step", *SAME_EVERY_TIME) == records(runs.whole, "step", *SAME_EVERY_TIME)
    assert (saved / "checkpoints" / f"{damaged.parent.name}.abandoned").is_dir(), "kept for a look at it"


@ONE_PRECISION
def test_a_damaged_checkpoint_asked_for_by_name_is_refused_with_the_file_named(
    worlds: Worlds, runs: Runs, saved: Path
) -> None:
    damaged = flip(sorted((saved / "checkpoints").iterdir())[-1] / "rank-00003.json")

    words = fail(worlds, runs, saved, f"checkpoint.resume={damaged.parent}")

    assert words.startswith("CheckpointError")
    assert f"{damaged} has changed since it was saved" in words
    assert "checkpoint.resume" in words, "the way out is named"


@ONE_PRECISION
def test_a_run_all_of_whose_checkpoints_are_damaged_does_not_start_again_by_itself(
    worlds: Worlds, runs: Runs, saved: Path
) -> None:
    newest, *older = sorted((saved / "checkpoints").iterdir(), reverse=True)
    damaged = flip(newest / "rank-00000.safetensors")
    for folder in older:
        shutil.rmtree(folder)

    words = fail(worlds, runs, saved)

    assert words.startswith("CheckpointError")
    assert f"{damaged} has changed" in words
    assert "checkpoint.resume=none" in words, "the way out is named"
    assert damaged.exists()


def flip(path: Path) -> Path:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@ONE_PRECISION
def test_other_data_or_another_batch_is_refused(worlds: Worlds, runs: Runs, saved: Path) -> None:
    words = fail(worlds, runs, saved, "train.gradient_accumulation_steps=1")

    assert words.startswith("ResumeError")
    assert "sequences per step: saved 4, this run 2" in words


@ONE_PRECISION
@pytest.mark.parametrize(
    "damage", ["no manifest", "short file", "missing file", "another schema", "not json"]
)
def test_an_unfinished_or_foreign_checkpoint_is_passed_over_with_the_reason(saved: Path, damage: str) -> None:
    before, newest = sorted((saved / "checkpoints").iterdir())[-2:]
    expected = break_checkpoint(newest, damage)

    found, passed_over = newest_whole(saved / "checkpoints")

    assert found == before
    assert len(passed_over) == 1
    assert passed_over[0].startswith(f"{newest}: ")
    assert expected in passed_over[0]


def break_checkpoint(folder: Path, damage: str) -> str:
    """Damage a checkpoint; returns a part of what must be said about it."""
    manifest = folder / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
        return "never finished"
    if damage == "short file":
        with (folder / "rank-00003.safetensors").open("r+b") as file:
            file.truncate(100)
        return "rank-00003.safetensors has 100 bytes instead of"
    if damage == "missing file":
        (folder / "rank-00000.json").unlink()
        return "rank-00000.json is missing"
    if damage == "another schema":
        manifest.write_text(manifest.read_text().replace('"schema": 3', '"schema": 99'))
        return "its schema is 99"
    manifest.write_text(manifest.read_text()[:-20])
    return "manifest.json cannot be read"


@ONE_PRECISION
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_saves_the_broken_one_anew(
    worlds: Worlds, runs: Runs, saved: Path
) -> None:
    before, newest = sorted((saved / "checkpoints").iterdir())[-2:]
    break_checkpoint(newest, "short file")

    run_file = str(runs.whole.parent / "run.yaml")
    assert set(worlds.run(4, train, run_file, [f"train.output_dir={saved}"])) == {0}

    assert metrics_of(saved, "resume")[-1]["path"] == str(before)
    assert records(saved, "step", *SAME_EVERY_TIME) == records(runs.whole, "step", *SAME_EVERY_TIME)
    assert newest_whole(saved / "checkpoints") == (newest, [])
