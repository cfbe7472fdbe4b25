"""What the hash of a row depends on: it finds duplicates, divides rows, and finds the divided ones again."""

from itertools import product
from pathlib import Path

import pytest

from megatune.data.rows import Place, Row
from megatune.data.segmenting import Segmenting, exchange_hash
from megatune.tasks import TASKS, RenderChat, TaskOptions


def chat_of(day: str) -> RenderChat:
    """A chat template that writes the day."""

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        turns = "".join(f"<{one['role']}>{one['content'].strip()}" for one in messages)
        return f"{day}{turns}{'<assistant>' if add_generation_prompt else ''}"

    return render


def hash_of(
    values: dict[str, object], *, completion_only: bool = True, is_chat: bool = True, day: str = "1 May"
) -> int:
    options = TaskOptions(chat=is_chat, template="{{ question }}")
    segmenting = Segmenting(
        task="qa", completion_only=completion_only, columns={}, split_name="train", options=options
    )
    return segmenting.read(row_of(values), chat_of(day))[1]


def row_of(values: dict[str, object]) -> Row:
    return Row(values, Place(Path("rows.jsonl"), 1))


@pytest.mark.parametrize("is_chat", [False, True])
def test_the_hash_of_an_exchange_is_of_its_prompt_and_answer_alone(is_chat: bool) -> None:
    values: dict[str, object] = {"question": "2 + 2?", "answers": ["4", "four"]}
    answers = TASKS["qa"].answers
    assert answers is not None
    options = TaskOptions(chat=is_chat, template="{{ question }}")

    found = {
        hash_of({**values, "id": day}, completion_only=completion_only, is_chat=is_chat, day=day)
        for completion_only, day in product([True, False], ["1 May", "2 May"])
    }

    exchange = answers.exchange(values, {}, options)
    assert found == {exchange_hash(exchange, options, row_of(values))}
    others = [{**values, "question": "2 + 3?"}, {**values, "answers": ["5"]}]
    for other in others:
        assert hash_of(other, is_chat=is_chat) not in found


def test_rows_that_a_chat_template_writes_alike_have_one_hash() -> None:
    texts = ("2 + 2?", " 2 + 2?", "2 + 2?\n")

    assert len({hash_of({"question": text, "answer": "4"}) for text in texts}) == 1
