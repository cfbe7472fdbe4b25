"""The ChatterBot corpus -> `messages` rows, with a held-out split that shares no question."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from megatune.data.pack import shuffled
from megatune.errors import DataError

Conversation = list[str]
"""Turns, the user's first: question, answer, question, answer."""


def chatterbot_conversations(corpus_folder: Path, names: Sequence[str] = ()) -> list[Conversation]:
    """All conversations of the YAML files in a folder, or of `names`, by file name, each as whole exchanges.

    A last turn without an answer and blank turns are left out; what is written twice is kept once.
    Raises DataError when there are no such files or one is not as expected.
    """
    files = sorted(file for file in corpus_folder.glob("*.yml") if not names or file.name in names)
    if not files:
        raise DataError(f"{corpus_folder} holds no .yml files; fetch the corpus first")
    found = {tuple(turns): turns for file in files for turns in map(_exchanges, _conversations(file))}
    return [turns for turns in found.values() if turns]


def write_dialogues(
    corpus_folder: Path, train_path: Path, valid_path: Path, *, valid_share: float, seed: int
) -> tuple[int, int]:
    """Write the corpus as two jsonl files of `messages` rows; the number of rows of each.

    Conversations that share a question, but for case, accents and punctuation, go to the same side:
    what is held out was never asked in training. The same arguments write the same files.
    """
    train, valid = split_by_question(
        chatterbot_conversations(corpus_folder), valid_share=valid_share, seed=seed
    )
    _write_rows(train_path, train)
    _write_rows(valid_path, valid)
    return len(train), len(valid)


def split_by_question(
    conversations: Sequence[Conversation], *, valid_share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out); groups of conversations that share questions are drawn up to the share."""
    groups = _groups(conversations)
    wanted = valid_share * len(conversations)
    held_out: set[int] = set()
    for number in shuffled(len(groups), seed):
        if len(held_out) + len(groups[number]) <= wanted:
            held_out.update(groups[number])
    train = [turns for i, turns in enumerate(conversations) if i not in held_out]
    return train, [conversations[i] for i in sorted(held_out)]


def normalised(question: str) -> str:
    """A question as it is compared: "What's  AI?" and "whats ai" are the same one."""
    plain = unicodedata.normalize("NFKD", question).casefold()
    letters = re.sub(r"[^\w\s]|_", "", "".join(c for c in plain if not unicodedata.combining(c)))
    return " ".join(letters.split()) or plain.strip()


def questions(turns: Conversation) -> Iterable[str]:
    """The user's turns of a conversation, as they are compared."""
    return map(normalised, turns[::2])


def _groups(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Conversation numbers, together where questions link them, also over third ones."""
    leader = list(range(len(conversations)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    first_with: dict[str, int] = {}
    for number, turns in enumerate(conversations):
        for question in questions(turns):
            leader[find(number)] = find(first_with.setdefault(question, number))
    members: dict[int, list[int]] = {}
    for number in range(len(conversations)):
        members.setdefault(find(number), []).append(number)
    return list(members.values())


def _conversations(file: Path) -> list[list[object]]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
        return [list(turns) for turns in found]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a ChatterBot corpus file with a list `conversations`: {error}"
        ) from error


def _exchanges(turns: list[object]) -> Conversation:
    """Whole exchanges up to the first blank turn."""
    texts: Conversation = []
    for turn in turns:
        text = str(turn).strip()
        if not text:
            break
        texts.append(text)
    return texts[: len(texts) // 2 * 2]


def _write_rows(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write beside `path` and rename, so that a killed run leaves no half file under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for turns in conversations:
            file.write(json.dumps({"messages": _messages(turns)}, ensure_ascii=False) + "\n")
    part.replace(path)


def _messages(turns: Conversation) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
