"""The journal of a search: draws that a seed decides, and trials that are taken once."""

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from megatune.errors import ConfigError
from megatune.tune.owner import Watcher, marked
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.result import read_result
from megatune.tune.search.space import Choices, Point, Range, Space
from megatune.tune.search.study import (
    Definition,
    draw_point,
    open_study,
    pruner_of,
    put_back,
    set_up,
    take_trial,
    trials_in,
)

SPACE = Space(
    axes=(
        Range(key="train.learning_rate", low=1e-5, high=1e-1, log=True),
        Range(key="train.per_device_train_batch_size", low=1, high=8, whole=True),
        Choices(key="train.lr_scheduler_type", values=("linear", "cosine")),
    )
)


def definition(
    sampler: str = "random", *, pruner: str = "none", seed: int = 0, space: Space = SPACE
) -> Definition:
    return Definition(space=space, sampler=sampler, pruner=pruner, seed=seed, run="")


def search(folder: Path, what: Definition, num_trials: int, *, stop_after: int | None = None) -> list[Point]:
    """Search with a loss that is least at 1e-3, and give all points; as one that was stopped, if asked."""
    folder.mkdir(exist_ok=True)
    study = open_study(folder, create=True)
    set_up(study, what, num_trials)
    points = []
    while len(points) != stop_after and (trial := take_trial(study, what)) is not None:
        points.append(draw_point(trial, what))
        loss = abs(float(points[-1].get("train.learning_rate", 0.0)) - 1e-3)
        study.tell(trial, loss)
    return points


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_decides_what_is_drawn_and_an_interrupted_search_draws_the_same(tmp_path, sampler):
    what = definition(sampler)
    whole = search(tmp_path / "whole", what, 12)

    begun = search(tmp_path / "stopped", what, 12, stop_after=7)
    continued = search(tmp_path / "stopped", what, 12)

    assert begun + continued == whole
    assert len({tuple(point.values()) for point in whole}) == 12
    assert search(tmp_path / "other", definition(sampler, seed=1), 12) != whole


def test_the_model_draws_nearer_to_the_best_than_chance_does(tmp_path):
    def distance(points: list[Point]) -> float:
        return sum(abs(float(point["train.learning_rate"]) - 1e-3) for point in points[-15:])

    by_model = search(tmp_path / "tpe", definition("tpe"), 40)
    by_chance = search(tmp_path / "random", definition("random"), 40)
    assert distance(by_model) < distance(by_chance)


def test_a_grid_is_gone_through_once_in_order(tmp_path):
    space = Space(axes=(Choices(key="a", values=("x", "y")), Range(key="b", low=0.0, high=0.2, step=0.1)))
    points = search(tmp_path / "grid", definition("grid", space=space), 1)
    assert points == space.grid()


def test_more_trials_go_on_with_a_finished_search(tmp_path):
    what = definition()
    assert len(search(tmp_path / "a", what, 3)) == 3
    assert len(search(tmp_path / "a", what, 5)) == 2


def test_a_folder_with_another_search_is_refused_with_what_differs(tmp_path):
    search(tmp_path / "a", definition(), 1)
    with pytest.raises(ConfigError, match="differs in: sampler, seed"):
        search(tmp_path / "a", definition("tpe", seed=3), 1)


def test_a_trial_is_taken_by_one_worker_alone_and_keeps_its_values_when_put_back(tmp_path):
    what = definition()
    study = open_study(tmp_path, create=True)
    set_up(study, what, 1)
    trial = take_trial(study, what)
    assert trial is not None
    point = draw_point(trial, what)
    trial.report(3.0, 50)
    other = open_study(tmp_path)
    assert take_trial(other, what) is None

    put_back(study, trial)
    again = take_trial(other, what)

    assert again is not None
    assert (again.number, draw_point(again, what)) == (0, point)
    assert trials_in(study)[0].intermediate_values == {50: 3.0}


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_pruner_ends_a_trial_that_is_worse_than_the_others(tmp_path, pruner):
    what = definition(pruner=pruner)
    study = open_study(tmp_path, create=True)
    set_up(study, what, 12)
    study.pruner = pruner_of(what, 12)

    def verdict(loss: float) -> bool:
        trial = take_trial(study, what)
        assert trial is not None
        for percent in (10, 30, 90):
            trial.report(loss, percent)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return True
        study.tell(trial, loss)
        return False

    for number in range(11):
        verdict(1.0 + 0.01 * (number % 3))
    assert verdict(9.0)


def test_the_result_tells_the_best_and_what_mattered(tmp_path):
    what = definition("random")
    search(tmp_path, what, 30)
    found = read_result(open_study(tmp_path), SearchFolder(tmp_path))

    assert found.best is not None
    assert found.best.loss == min(trial.loss for trial in found.trials)
    assert found.importance is not None
    assert max(found.importance, key=found.importance.__getitem__) == "train.learning_rate"
    assert sum(found.importance.values()) == pytest.approx(1.0)


def test_importance_is_unknown_with_few_trials(tmp_path):
    search(tmp_path, definition(), 9)
    assert read_result(open_study(tmp_path), SearchFolder(tmp_path)).importance is None


def test_failed_trials_are_results_and_never_the_best(tmp_path):
    what = definition()
    study = open_study(tmp_path, create=True)
    set_up(study, what, 1)
    trial = take_trial(study, what)
    assert trial is not None
    draw_point(trial, what)
    trial.set_user_attr("failure", {"class": "gpu_memory", "summary": "no room"})
    study.tell(trial, state=TrialState.PRUNED)

    found = read_result(study, SearchFolder(tmp_path))
    assert found.best is None
    assert found.trials[0].state == "failed"
    assert found.as_object()["trials"][0]["failure"]["class"] == "gpu_memory"


def test_a_worker_that_was_killed_is_known_to_be_gone_and_a_living_one_is_not(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom megatune.tune.owner import marked\n"
        "with marked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        assert not Watcher().is_abandoned(tmp_path)
        worker.kill()
    assert Watcher().is_abandoned(tmp_path)


def test_the_mark_of_another_machine_is_believed_while_it_may_move(tmp_path):
    with marked(tmp_path):
        (tmp_path / "worker").write_text("another-machine")
        watcher = Watcher()
        assert not watcher.is_abandoned(tmp_path)
        assert not watcher.is_abandoned(tmp_path)
    assert not (tmp_path / "worker").exists()
