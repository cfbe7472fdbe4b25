"""Promise 1 for answers: what ranks write together is what plain transformers writes on one device."""

from pathlib import Path
from typing import Any

import pytest
from generation_cases import (
    Chosen,
    answers,
    answers_around_steps,
    chosen,
    family_answers,
    family_chosen,
    family_chosen_by_hand,
    family_references,
    plain_answers,
    several,
)
from tiny_models import TINY, write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

NUM_PROMPTS = 7
"""No number of ranks and no batch of 2 divides it."""


@pytest.fixture(scope="module")
def folders(session_folder: Path) -> dict[str, str]:
    return {name: str(write_tiny_model(name, session_folder)) for name in TINY}


@pytest.fixture(scope="module")
def references(worlds: Worlds, folders: dict[str, str]) -> dict[str, Any]:
    return worlds.run(1, family_references, folders, NUM_PROMPTS)[0]


# Learned positions, angles of parts of a head, windows of caches, and experts; the others where both layers and rows
# are divided.
FEW = ("gpt2-5-heads", "glm", "gemma2", "qwen3_moe")


@pytest.mark.parametrize(("tp", "dp", "names"), [(1, 2, FEW), (2, 1, FEW), (2, 2, tuple(TINY))])
def test_greedy_tokens_of_every_family_are_those_of_transformers_on_one_device(
    worlds: Worlds,
    folders: dict[str, str],
    references: dict[str, Any],
    tp: int,
    dp: int,
    names: tuple[str, ...],
) -> None:
    some = {name: folders[name] for name in names}
    for rank in worlds.run(tp * dp, family_answers, some, tp, "once", NUM_PROMPTS, 2):
        assert rank == {name: references[name] for name in names}
    lengths = {len(answer) for found in references.values() for answer in found}
    assert len(lengths) > 3, "the rows end at different times"


def test_beams_samples_and_gathering_per_token_write_the_same_at_every_layout(
    worlds: Worlds, folders: dict[str, str]
) -> None:
    folder = folders["llama"]
    beams = {"num_beams": 3, "number": NUM_PROMPTS, "rows_at_once": 2}
    samples = {"do_sample": True, "top_k": 20, "number": NUM_PROMPTS, "rows_at_once": 2}
    settings = [{"gather": gather, **way} for gather in ("once", "per_token") for way in (beams, samples)]
    expected = worlds.run(1, several, folder, 0, settings[:2])[0] * 2

    one_by_one = worlds.run(1, several, folder, 0, [{**settings[0], "rows_at_once": 1}])[0]
    assert expected[0] == one_by_one[0], "beams do not depend on the batch"
    assert worlds.run(1, plain_answers, folder, NUM_PROMPTS)[0] not in expected, "and differ from greedy"
    for tp, ranks in ((1, 2), (2, 2), (2, 4)):
        for rank in worlds.run(ranks, several, folder, tp, settings):
            assert rank == expected, (tp, ranks)


def test_every_row_is_answered_once_for_row_counts_that_no_batch_divides(
    worlds: Worlds, folders: dict[str, str]
) -> None:
    settings = [
        {"gather": gather, "number": number, "rows_at_once": rows}
        for number, rows, gather in [
            (1, 4, "once"),
            (1, 1, "per_token"),
            (3, 2, "per_token"),
            (5, 1, "once"),
            (5, 3, "per_token"),
            (9, 4, "once"),
        ]
    ]
    expected = worlds.run(1, plain_answers, folders["gpt2"], 9)[0]

    for tp, ranks in ((1, 2), (2, 4)):
        for rank in worlds.run(ranks, several, folders["gpt2"], tp, settings):
            for setting, found in zip(settings, rank, strict=True):
                assert found == expected[: setting["number"]], setting


def test_answers_follow_the_weights_and_leave_training_as_it_is(
    worlds: Worlds, folders: dict[str, str]
) -> None:
    for before, once, per_token, undisturbed in worlds.run(2, answers_around_steps, folders["llama"], 1):
        assert undisturbed
        assert once == per_token
        assert once != before


def test_choices_and_their_losses_are_those_of_whole_sequences_for_every_family(
    worlds: Worlds, folders: dict[str, str]
) -> None:
    expected = worlds.run(1, family_chosen_by_hand, folders, NUM_PROMPTS)[0]

    assert len({index for rows in expected.values() for index, _, _ in rows}) > 2
    for found in worlds.run(1, family_chosen, folders, 0, NUM_PROMPTS, 3):
        for name, rows in found.items():
            assert_chosen(rows, expected[name])
    one = "llama-tied-9-heads"
    for tp, ranks, gather in ((1, 2, "per_token"), (2, 4, "once")):
        for found in worlds.run(ranks, chosen, folders[one], tp, gather, NUM_PROMPTS, 2):
            assert_chosen(found, expected[one])


def assert_chosen(found: list[Chosen], expected: list[Chosen]) -> None:
    assert [index for index, _, _ in found] == [index for index, _, _ in expected]
    assert [share for _, share, _ in found] == pytest.approx([share for _, share, _ in expected], abs=1e-4)
    assert [loss for _, _, loss in found] == pytest.approx([loss for _, _, loss in expected], rel=1e-4)


def test_a_plain_engine_answers_in_batches_as_it_does_one_by_one(
    worlds: Worlds, folders: dict[str, str]
) -> None:
    batched = worlds.run(1, answers, folders["falcon"], 0, "auto", NUM_PROMPTS, 3)[0]

    assert batched == worlds.run(1, plain_answers, folders["falcon"], NUM_PROMPTS)[0]
