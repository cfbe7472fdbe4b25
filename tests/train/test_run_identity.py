"""What a changed run file may go on with."""

from pathlib import Path

import pytest

from megatune.config import Run
from megatune.config.load import leaves
from megatune.errors import ResumeError
from megatune.train.identity import NEVER, ON_REQUEST, changes, identity_hash, refuse_another_run

SAVED = {"parameters": "a", "train.seed": "42", "train.learning_rate": "1e-05", "evaluate.eval_steps": "10"}
FOUND = Path("runs/first/checkpoints/step-00000010")


def test_a_free_setting_goes_on_and_is_told() -> None:
    now = {**SAVED, "evaluate.eval_steps": "20", "parallel.tp_size": "2"}

    told = refuse_another_run(FOUND, SAVED, now, allow_change=False)

    assert [str(change) for change in told] == [
        "evaluate.eval_steps: saved 10, this run 20",
        "parallel.tp_size: saved n/a, this run 2",
    ]


def test_all_differences_that_count_are_refused_at_once_with_the_way_out() -> None:
    now = {**SAVED, "train.seed": "7", "train.learning_rate": "0.1", "evaluate.eval_steps": "20"}

    with pytest.raises(ResumeError) as caught:
        refuse_another_run(FOUND, SAVED, now, allow_change=False)

    words = str(caught.value)
    assert "\n  - train.seed: saved 42, this run 7" in words
    assert "\n  - train.learning_rate: saved 1e-05, this run 0.1" in words
    assert "eval_steps" not in words
    assert "--allow-change" in words
    assert len(refuse_another_run(FOUND, SAVED, now, allow_change=True)) == 3


@pytest.mark.parametrize("name", sorted(NEVER))
def test_what_would_make_the_tensors_meaningless_is_refused_even_on_request(name: str) -> None:
    with pytest.raises(ResumeError) as caught:
        refuse_another_run(FOUND, {**SAVED, name: "a"}, {**SAVED, name: "b"}, allow_change=True)

    assert f"{name}: saved a, this run b" in str(caught.value)
    assert "--allow-change" not in str(caught.value)


def test_every_setting_of_the_table_exists_and_the_documentation_names_it() -> None:
    run = Run.model_validate(
        {"model": {"model_name_or_path": "m"}, "data": {"train": "t"}, "train": {"output_dir": "o"}}
    )
    settings = {".".join(key) for key, _ in leaves(run)}
    facts = {"parameters", "model", "prepared data", "sequences per step"}
    assert (NEVER | ON_REQUEST) - facts <= settings

    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert [name for name in (NEVER | ON_REQUEST) - {"model"} if name not in text] == []


def test_the_hash_of_the_settings_changes_with_any_of_them() -> None:
    assert identity_hash(SAVED) == identity_hash(dict(reversed(SAVED.items())))
    assert len({identity_hash({**SAVED, name: "other"}) for name in SAVED} | {identity_hash(SAVED)}) == 5
    assert changes(SAVED, dict(SAVED)) == []
