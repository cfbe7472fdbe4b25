"""`train.class_weights`: by label, balanced for one class a row and for several, and refused by name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from megatune.config import Run, load_run, resolved_yaml
from megatune.errors import ConfigError
from megatune.train.class_weights import class_weights

LABELS = ("1", "ham", "spam")
ONE = np.array([-100, 0, -100, 0, 0, 2])
SEVERAL = np.array([-100, 0b001, 0b101, -100, 0b000, 0b101])
"""Of four rows: three have the first label, none the second, two the third."""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load(*overrides) -> LoadedRun` of a text classifier."""
    (tmp_path / "rows.jsonl").write_text('{"text": "x", "label": "ham"}\n')
    (tmp_path / "model").mkdir()
    sections = {
        "model": {"model_name_or_path": str(tmp_path / "model"), "head": "classifier"},
        "data": {"task": "classification", "train": str(tmp_path / "rows.jsonl")},
        "train": {"output_dir": str(tmp_path / "run")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return lambda *overrides: load_run(path, list(overrides))


def weights_of(run: Run, labels: np.ndarray) -> tuple[float, ...] | None:
    prepared: Any = SimpleNamespace(arrays={"labels": labels})
    return class_weights(run, prepared, LABELS)


@pytest.mark.parametrize(
    ("overrides", "labels", "weights"),
    [
        ([], ONE, None),
        (["train.class_weights=balanced"], ONE, (4 / 6, 0.0, 2.0)),
        (['train.class_weights={spam: 3, "1": 0.5}'], ONE, (0.5, 1.0, 3.0)),
        (["train.class_weights=balanced", "data.multi_label=true"], SEVERAL, (1 / 3, 1.0, 1.0)),
        (["train.class_weights={spam: 3}", "data.multi_label=true"], SEVERAL, (1.0, 1.0, 3.0)),
    ],
)
def test_a_weight_belongs_to_the_label_that_it_was_given_for(
    load: Any, overrides: list[str], labels: np.ndarray, weights: tuple[float, ...] | None
) -> None:
    found = weights_of(load(*overrides).run, labels)

    assert found == (None if weights is None else pytest.approx(weights))


def test_a_label_that_is_no_class_is_refused_with_the_one_that_was_meant(load: Any) -> None:
    run = load("train.class_weights={sapm: 3, other: 2}").run

    with pytest.raises(
        ConfigError, match=r"names 'sapm'.*Did you mean 'spam'\? Classes: 1, ham, spam"
    ) as refused:
        weights_of(run, ONE)
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "value", ["{}", "{spam: 0}", "{spam: heavy}", "{spam: -1}", "uneven", "[1, 2]", "{spam: .inf}"]
)
def test_weights_that_are_no_positive_numbers_are_refused(load: Any, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.class_weights.*none, balanced, or a positive number for each label"
    ):
        load(f"train.class_weights={value}")


def test_a_span_head_has_no_classes(load: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.class_weights is for classes of texts or words, but data\.task is qa"
    ):
        load("data.task=qa", "train.class_weights={spam: 2}")


def test_a_written_run_file_reads_back_with_the_same_weights(load: Any, tmp_path: Path) -> None:
    loaded = load('train.class_weights={spam: 3, "1": 0.5}')
    path = tmp_path / "written.yaml"
    path.write_text(resolved_yaml(loaded))

    assert load_run(path, []).run.train.class_weights == {"spam": 3.0, "1": 0.5}
    as_json = loaded.run.model_dump(mode="json", exclude_none=True, by_alias=True)
    assert Run.model_validate(as_json) == loaded.run
