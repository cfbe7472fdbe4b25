"""Which checkpoints a run keeps, points at, sets aside and refuses."""

import json
import shutil
from pathlib import Path

import pytest
from ending_cases import train_as, train_ending, train_stopped_at_once
from tiny_runs import (
    metrics_of,
    train,
    train_failing,
    write_model_with_tokenizer,
    write_rows,
    write_run,
)
from worlds import Worlds
from written_checkpoints import write_checkpoint

from megatune.checkpoint.folders import newest_whole
from megatune.cli.export import model_folder
from megatune.report.summary import summarise

pytestmark = pytest.mark.world

AT_BEST = "evaluate.load_best_model_at_end=true"


@pytest.fixture(scope="module")
def finished(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps whose held-out loss never falls: the first saved checkpoint is the best one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_file = write_run(
        folder / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"learning_rate": 0.0, "warmup_steps": 0, "max_steps": 6},
        evaluate={"eval_steps": 2},
        checkpoint={"export_at_end": False, "save_steps": 2, "save_total_limit": 1},
        parallel={"tp_size": 1},
    )
    assert set(worlds.run(2, train, str(run_file), [])) == {0}
    return run_file


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished.parent / "run", tmp_path / "run"))


def start(worlds: Worlds, run_file: Path, run_dir: Path, *overrides: str) -> None:
    assert set(worlds.run(2, train, str(run_file), [f"train.output_dir={run_dir}", *overrides])) == {0}


def refused(worlds: Worlds, run_file: Path, run_dir: Path, *overrides: str) -> str:
    """The words that all ranks end with."""
    (words,) = set(worlds.run(2, train_failing, str(run_file), [f"train.output_dir={run_dir}", *overrides]))
    return str(words)


def names(run_dir: Path) -> list[str]:
    return sorted(folder.name for folder in (run_dir / "checkpoints").iterdir())


def hints(run_dir: Path) -> tuple[str, str]:
    return (run_dir / "best").read_text().strip(), (run_dir / "latest").read_text().strip()


def test_a_run_that_only_measures_leaves_no_checkpoint_and_counts_its_processor_time(
    worlds: Worlds, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "measured"
    only_measures = [
        "checkpoint.save_at_end=false",
        "checkpoint.save_total_limit=null",
        "checkpoint.save_steps=null",
        "data.validation=null",
        "evaluate.eval_steps=null",
        "train.max_steps=2",
    ]
    start(worlds, finished, run_dir, *only_measures)
    assert names(run_dir) == []
    assert [stop["exit_code"] for stop in metrics_of(run_dir, "stop")] == [0]
    assert all(step["cpu_seconds"] > 0 for step in metrics_of(run_dir, "step"))


def test_the_best_checkpoint_outlives_the_limit_and_the_hints_name_both(run_dir: Path) -> None:
    assert names(run_dir) == ["step-00000002", "step-00000006"]
    assert hints(run_dir) == ("step-00000002", "step-00000006")
    training = json.loads((run_dir / "checkpoints" / "step-00000006" / "training.json").read_text())
    assert training["state"]["best_step"] == 2


def test_a_new_run_sets_the_old_checkpoints_aside_and_the_next_start_goes_on_from_the_new_ones(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    start(worlds, finished, run_dir, "checkpoint.resume=none", "train.max_steps=4")

    aside = ["step-00000002.abandoned", "step-00000006.abandoned"]
    assert names(run_dir) == sorted(["step-00000002", "step-00000004", *aside])
    assert all((run_dir / "checkpoints" / name / "manifest.json").is_file() for name in aside)
    assert hints(run_dir) == ("step-00000002", "step-00000004")

    start(worlds, finished, run_dir)

    assert metrics_of(run_dir, "resume")[-1]["step"] == 4
    assert [entry["step"] for entry in metrics_of(run_dir, "step")] == [1, 2, 3, 4, 5, 6]


def test_a_start_from_an_older_checkpoint_sets_the_newer_aside(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    older = run_dir / "checkpoints" / "step-00000002"

    start(worlds, finished, run_dir, f"checkpoint.resume={older}", "train.max_steps=4")

    assert names(run_dir) == ["step-00000002", "step-00000004", "step-00000006.abandoned"]
    assert newest_whole(run_dir / "checkpoints")[0] == run_dir / "checkpoints" / "step-00000004"


def test_a_start_from_another_runs_checkpoint_does_not_mix_the_two(
    worlds: Worlds, finished: Path, run_dir: Path, tmp_path: Path
) -> None:
    foreign = run_dir / "checkpoints" / "step-00000006"
    other = tmp_path / "other"

    start(worlds, finished, other, f"checkpoint.resume={foreign}", "train.max_steps=8")

    assert names(other) == ["step-00000008"]
    assert hints(other) == ("step-00000008", "step-00000008"), "the best is one that is here"
    assert names(run_dir) == ["step-00000002", "step-00000006"]


def test_a_start_from_another_runs_checkpoint_leaves_nothing_of_the_run_that_was_here(
    worlds: Worlds, finished: Path, run_dir: Path, tmp_path: Path
) -> None:
    foreign = run_dir / "checkpoints" / "step-00000006"
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))

    start(worlds, finished, other, f"checkpoint.resume={foreign}", "train.max_steps=8", AT_BEST)

    assert names(other) == ["step-00000002.abandoned", "step-00000006.abandoned", "step-00000008"]
    assert [entry["step"] for entry in metrics_of(other, "step")] == [7, 8]
    assert [entry["step"] for entry in metrics_of(other, "eval")] == [6, 8]
    assert metrics_of(other, "stop")[-1]["model_step"] == 8, (
        "the best one of the run that was here is no choice"
    )
    (split,) = summarise(other / "metrics.jsonl").splits
    assert split.loss_before is not None


def test_what_was_set_aside_can_be_gone_on_from(worlds: Worlds, finished: Path, run_dir: Path) -> None:
    start(worlds, finished, run_dir, "checkpoint.resume=none", "train.max_steps=2")
    aside = run_dir / "checkpoints" / "step-00000006.abandoned"

    start(worlds, finished, run_dir, f"checkpoint.resume={aside}")

    assert hints(run_dir)[1] == "step-00000006", "saved under its own name"
    assert newest_whole(run_dir / "checkpoints")[0] == run_dir / "checkpoints" / "step-00000006"


@pytest.mark.parametrize("how", ["none", "folder"])
def test_a_later_start_of_the_same_request_goes_on_instead_of_beginning_again(
    worlds: Worlds, finished: Path, run_dir: Path, how: str
) -> None:
    asked = "none" if how == "none" else str(run_dir / "checkpoints" / "step-00000002")
    overrides = [f"train.output_dir={run_dir}", f"checkpoint.resume={asked}"]

    for max_steps in (4, 6):
        steps = f"train.max_steps={max_steps}"
        assert set(worlds.run(2, train_as, "a job", str(finished), [*overrides, steps])) == {0}

    assert metrics_of(run_dir, "resume")[-1]["step"] == 4
    assert [entry["step"] for entry in metrics_of(run_dir, "step")] == [1, 2, 3, 4, 5, 6]
    assert sum("abandoned" in name for name in names(run_dir)) == (2 if how == "none" else 1)

    assert set(worlds.run(2, train_as, "another", str(finished), [*overrides, "train.max_steps=3"])) == {0}
    assert hints(run_dir)[1] == "step-00000003", "another request is done as it says"


def test_a_start_that_was_killed_before_it_saved_begins_as_it_was_asked(
    worlds: Worlds, finished: Path, run_dir: Path, tmp_path: Path
) -> None:
    foreign, other = run_dir / "checkpoints" / "step-00000006", tmp_path / "other"
    other.mkdir()
    (other / "begun").write_text("request a job\n")

    overrides = [f"train.output_dir={other}", f"checkpoint.resume={foreign}", "train.max_steps=7"]
    assert set(worlds.run(2, train_as, "a job", str(finished), overrides)) == {0}

    assert [entry["step"] for entry in metrics_of(other, "step")] == [7]


def test_a_start_from_another_run_that_took_no_step_leaves_its_beginning_to_the_next(
    worlds: Worlds, finished: Path, run_dir: Path, tmp_path: Path
) -> None:
    foreign, other = run_dir / "checkpoints" / "step-00000006", tmp_path / "other"
    overrides = [f"train.output_dir={other}", f"checkpoint.resume={foreign}", "train.max_steps=7"]

    assert set(worlds.run(2, train_stopped_at_once, str(finished), overrides)) == {75}
    assert names(other) == []
    start(worlds, finished, other, *overrides[1:])

    assert [entry["step"] for entry in metrics_of(other, "eval")] == [6, 7]


def test_a_run_that_does_not_save_at_its_end_saves_what_is_due_there_and_says_what_it_exports(
    worlds: Worlds, finished: Path, tmp_path: Path
) -> None:
    overrides = ["checkpoint.save_at_end=false", "checkpoint.export_at_end=true"]
    for max_steps, saved in ((4, 4), (5, 4)):
        run_dir = tmp_path / str(max_steps)
        start(worlds, finished, run_dir, *overrides, f"train.max_steps={max_steps}")
        assert hints(run_dir)[1] == f"step-{saved:08d}"
        assert metrics_of(run_dir, "stop")[-1]["model_step"] == saved
        assert (run_dir / "exported").read_text() == f"step-{saved:08d}\n"


def test_an_export_that_was_trained_on_from_is_not_the_runs_model(
    worlds: Worlds, finished: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(worlds, finished, run_dir, "checkpoint.export_at_end=true")
    with model_folder(run_dir) as folder:
        assert folder == run_dir / "export"

    overrides = [f"train.output_dir={run_dir}", "train.max_steps=9", "checkpoint.export_at_end=true"]
    assert set(worlds.run(2, train, str(finished), overrides, (0, 1))) == {75}

    with model_folder(run_dir) as folder:
        assert folder != run_dir / "export"
    assert "is of an earlier model" in capsys.readouterr().err


def test_what_a_kill_has_left_beyond_the_limit_goes_with_the_next_start(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    checkpoints = run_dir / "checkpoints"
    write_checkpoint(checkpoints, 4)

    start(worlds, finished, run_dir)

    assert names(run_dir) == ["step-00000002", "step-00000006"]


def test_a_checkpoint_that_a_signal_has_asked_for_is_never_the_best(
    worlds: Worlds, finished: Path, tmp_path: Path
) -> None:
    """No undisturbed run would have it."""
    run_dir = tmp_path / "run"
    overrides = [f"train.output_dir={run_dir}", "checkpoint.save_steps=4"]
    assert set(worlds.run(2, train, str(finished), overrides, (0, 2))) == {75}
    assert (run_dir / "latest").read_text() == "step-00000002\n"

    start(worlds, finished, run_dir, *overrides[1:])

    assert hints(run_dir)[0] == "step-00000004"


def test_the_best_checkpoint_from_before_an_allowed_change_is_still_the_result(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    changed = ["train.weight_decay=0.2", "train.max_steps=8", AT_BEST]

    for permission in (["checkpoint.allow_change=true"], []):
        start(worlds, finished, run_dir, *changed, *permission)
        assert metrics_of(run_dir, "stop")[-1]["model_step"] == 2


def test_a_best_checkpoint_that_is_damaged_is_named_with_the_way_out_and_one_that_is_not_whole_is_none(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    best = run_dir / "checkpoints" / "step-00000002"
    content = (best / "training.json").read_bytes()
    (best / "training.json").write_bytes(content[:-1] + b" ")

    words = refused(worlds, finished, run_dir, AT_BEST)

    assert "training is done, and its best checkpoint, that of step 2, is damaged" in words
    assert "evaluate.load_best_model_at_end=false" in words
    start(worlds, finished, run_dir, "evaluate.load_best_model_at_end=false")
    (best / "training.json").unlink()
    start(worlds, finished, run_dir, AT_BEST, "train.max_steps=8")
    assert hints(run_dir) == ("step-00000008", "step-00000008")
    assert metrics_of(run_dir, "stop")[-1]["model_step"] == 8


@pytest.mark.parametrize("change", ["rows", "evaluate.max_eval_rows=1"])
def test_scores_of_other_rows_decide_nothing(
    worlds: Worlds, finished: Path, run_dir: Path, tmp_path: Path, change: str
) -> None:
    other = write_rows(tmp_path / "other.jsonl", 9, seed=3)
    override = f"data.validation={other}" if change == "rows" else change

    start(worlds, finished, run_dir, override, "train.max_steps=8")

    assert hints(run_dir) == ("step-00000006", "step-00000008"), "the best one is looked for anew"
    assert [entry["step"] for entry in metrics_of(run_dir, "eval")] == [0, 2, 4, 6, 8]
    (split,) = summarise(run_dir / "metrics.jsonl").splits
    assert not split.is_comparable


def test_an_evaluation_made_after_the_checkpoint_is_not_doubled(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    # As a kill leaves it after the evaluation that a start makes up for: the checkpoint knows none.
    newest = run_dir / "checkpoints" / "step-00000006"
    shutil.rmtree(newest)
    overrides = [f"train.output_dir={run_dir}", "train.max_steps=4"]
    assert set(worlds.run(2, train, str(finished), overrides, (1, 1))) == {75}
    kept = [entry for entry in metrics_of(run_dir, "eval") if entry["step"] < 4]
    (run_dir / "metrics.jsonl").write_text(
        "".join(
            f"{line}\n"
            for line in [*(run_dir / "metrics.jsonl").read_text().splitlines(), _evaluation(kept, 4)]
        )
    )

    start(worlds, finished, run_dir, "train.max_steps=5")

    assert [entry["step"] for entry in metrics_of(run_dir, "eval")] == [0, 2, 4, 5]


def _evaluation(evaluations: list[dict[str, object]], step: int) -> str:
    return json.dumps({**evaluations[-1], "step": step})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.optimizer=sgd", "train.optimizer: saved adamw, this run sgd"),
        ("precision=bf16", "precision: saved fp32, this run bf16"),
        ("train.seed=7", "train.seed: saved 42, this run 7"),
    ],
)
def test_what_would_go_on_differently_is_refused_with_both_values(
    worlds: Worlds, finished: Path, run_dir: Path, override: str, words: str
) -> None:
    found = refused(worlds, finished, run_dir, override)

    assert found.startswith("ResumeError")
    assert words in found
    assert "checkpoint.resume=none" in found, "the way out is named"
    assert names(run_dir) == ["step-00000002", "step-00000006"]


def test_what_is_refused_goes_on_when_it_is_allowed_and_the_next_start_needs_no_permission(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    changed = ["train.seed=7", "train.learning_rate=1e-5"]

    start(worlds, finished, run_dir, *changed, "checkpoint.allow_change=true", "train.max_steps=8")
    start(worlds, finished, run_dir, *changed, "train.max_steps=9")

    assert [entry["step"] for entry in metrics_of(run_dir, "resume")] == [6, 8]
    assert [entry["learning_rate"] for entry in metrics_of(run_dir, "step")][:6] == [0.0] * 6
    assert all(entry["learning_rate"] > 0 for entry in metrics_of(run_dir, "step")[6:8])


def test_another_model_of_the_same_shape_is_refused(
    worlds: Worlds, finished: Path, session_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(write_model_with_tokenizer(session_folder), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.1}))

    words = refused(worlds, finished, run_dir, f"model.model_name_or_path={model}")

    assert words.startswith("ResumeError")
    assert "model: saved " in words


def test_a_folder_that_is_no_checkpoint_is_the_users_mistake(
    worlds: Worlds, finished: Path, run_dir: Path
) -> None:
    (run_dir / "checkpoints" / "step-00000002" / "manifest.json").unlink()

    words = refused(worlds, finished, run_dir, f"checkpoint.resume={run_dir}/checkpoints/step-00000002")

    assert words.startswith("ResumeError: checkpoint.resume")
    assert "never finished" in words


def test_numbers_that_are_not_finite_end_all_ranks_and_nothing_is_saved(
    worlds: Worlds, finished: Path, tmp_path: Path
) -> None:
    words = refused(
        worlds, finished, tmp_path / "run", "train.learning_rate=1e30", "evaluate.eval_steps=null"
    )

    assert words.startswith("MegatuneError: step 2: loss nan, gradient norm not finite")
    assert "Lower train.learning_rate (now 1e+30)" in words
    assert names(tmp_path / "run") == []


def test_a_first_rank_that_cannot_write_its_records_ends_all_ranks(
    worlds: Worlds, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)

    first, second = worlds.run(2, train_ending, str(finished), [f"train.output_dir={tmp_path / 'run'}"])

    assert first.startswith("IsADirectoryError")
    assert second.startswith("MegatuneError: rank 0 failed: IsADirectoryError")
