"""A run with train.profile writes a trace that other programs read, and a page that explains the steps."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.config.sections import ProfileSection
from megatune.engine.world import single_world
from megatune.train.profiling import StepProfiler

pytestmark = pytest.mark.world


def test_a_profiled_run_says_where_its_steps_went_and_how_its_loss_is_taken(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"profile": {"steps": "2-3"}, "max_steps": 4, "num_train_epochs": 1},
        parallel={"tp_size": 1},
    )

    codes = worlds.run(2, train, str(run_file), [])

    assert codes == [0, 0]
    folder = tmp_path / "run/profile"
    page = (folder / "summary.txt").read_text()
    assert page.startswith("2 step(s)")
    shares = {line.split()[0]: float(line.split()[3].rstrip("%")) for line in page.splitlines()[2:10]}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert all(shares[phase] > 0 for phase in ("compute", "gather", "reduce", "optimizer", "data"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "megatune::step" and event.get("ph") == "X" for event in events) >= 2
    (details,) = [record["details"] for record in metrics_of(tmp_path / "run", "run")]
    assert details["loss"] == "in chunks inside the head"
    assert "weights kept gathered in shared memory" in details["engine"]


@pytest.mark.parametrize(("last_step", "is_told"), [(4, True), (5, False)])
def test_a_profile_of_steps_that_will_not_be_is_announced(
    tmp_path: Path, last_step: int, is_told: bool
) -> None:
    notes: list[str] = []

    StepProfiler(
        ProfileSection(steps="5-9"),
        tmp_path,
        single_world(),
        SimpleNamespace(note=notes.append),  # type: ignore[arg-type]
        total_steps=last_step,
    )

    assert any("no profile" in note for note in notes) is is_told


def test_a_run_that_ends_before_its_profile_does_still_writes_it(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"profile": {"steps": "2-9"}, "max_steps": 3, "num_train_epochs": 1},
        parallel={"tp_size": 1},
    )

    worlds.run(1, train, str(run_file), [])

    assert (tmp_path / "run/profile/summary.txt").read_text().startswith("2 step(s)")
