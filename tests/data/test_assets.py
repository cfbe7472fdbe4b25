"""What `megatune fetch` writes beside the demo: own sets whole and readable, corpora without leaks, run files."""

import json
from pathlib import Path

import pytest

from megatune.config import load_run
from megatune.data import assets
from megatune.data.topics import read_topics
from megatune.errors import DataError
from megatune.tasks import TASKS, TaskOptions


@pytest.fixture(autouse=True)
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_model", lambda _: iter(()))  # 538 MB that say nothing here


@pytest.mark.parametrize("task", ["ner", "summarization", "translation"])
def test_an_own_set_has_sixty_different_rows_that_its_task_can_read(tmp_path: Path, task: str) -> None:
    lines = list(assets.fetch_asset(task, tmp_path / "in here"))

    rows = [
        json.loads(line)
        for split in ("train", "valid")
        for line in (tmp_path / "in here" / task / f"{split}.jsonl").read_text().splitlines()
    ]
    answers = TASKS[task].answers
    assert answers is not None
    exchanges = [answers.exchange(row, {}, TaskOptions()) for row in rows]
    assert len({exchange.prompt for exchange in exchanges}) == len(rows) >= 60
    for exchange in exchanges:
        assert answers.parse(exchange.answer, exchange, TaskOptions()) == exchange.gold
    run = load_run(tmp_path / "in here" / f"{task}.yaml").run
    assert run.data.train.paths == [str(tmp_path / "in here" / task / "train.jsonl")]
    assert all("Apache-2.0" in line for line in lines if "jsonl" in line)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'poems'.*demo, dialogue, topics, trivia"):
        list(assets.fetch_asset("poems", tmp_path))


def test_stories_are_read_with_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "r8.tab"
    path.write_text("Category\tText\nd\tstring\nclass\t\nearn\tshares rose \n\nacq\tfirm buys firm\n")

    assert read_topics(path) == [
        {"text": "shares rose", "label": "earn"},
        {"text": "firm buys firm", "label": "acq"},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("label\ttext\n", "three header lines"), ("Category\tText\nd\tstring\nclass\nearn only\n", "r8.tab:4")],
)
def test_another_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r8.tab"
    path.write_text(text)

    with pytest.raises(DataError, match=words):
        read_topics(path)
