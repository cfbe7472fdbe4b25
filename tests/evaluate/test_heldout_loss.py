"""Every held-out token counts once, whatever batches and ranks the rows fall into."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from heldout_cases import NUM_ROWS, held_out_losses, loss_without_targets, losses_of_rows
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.evaluate.answered import Answered
from megatune.evaluate.heldout import HeldOutLoss, loss_of_answers

SETTINGS: list[dict[str, Any]] = [
    {"num_rows": num_rows, "micro_batch": micro_batch, "max_rows": max_rows}
    for num_rows in (1, 2, 3, 5, 7, NUM_ROWS)
    for micro_batch in (1, 2, 4)
    for max_rows in (None, 3)
]


@pytest.fixture(scope="module")
def losses(worlds: Worlds, session_folder: Path) -> dict[str, Any]:
    folder = str(write_tiny_model("gpt2", session_folder))
    return {
        "rows": worlds.run(1, losses_of_rows, folder)[0],
        "dp=2": worlds.run(2, held_out_losses, folder, 1, SETTINGS),
        "dp=2 x tp=2": worlds.run(4, held_out_losses, folder, 2, SETTINGS),
        "dp=4": worlds.run(4, held_out_losses, folder, 1, SETTINGS),
        "whole logits": worlds.run(2, partial(held_out_losses, chunked=False), folder, 2, SETTINGS),
    }


@pytest.mark.world
@pytest.mark.parametrize("layout", ["dp=2", "dp=2 x tp=2", "dp=4", "whole logits"])
def test_every_row_counts_once_for_row_counts_that_no_batch_divides(
    losses: dict[str, Any], layout: str
) -> None:
    for index, setting in enumerate(SETTINGS):
        counted = losses["rows"][: min(setting["num_rows"], setting["max_rows"] or NUM_ROWS)]
        targets = sum(number for _, number in counted)
        mean = sum(loss for loss, _ in counted) / targets
        alone = loss_of_answers([Answered(loss=loss, num_targets=number) for loss, number in sorted(counted)])
        assert alone is not None
        for rank in losses[layout]:
            loss, found_targets, interval = rank[index]
            assert found_targets == targets, setting
            assert loss == pytest.approx(mean, rel=1e-6), setting
            assert interval == (alone.interval and pytest.approx(alone.interval, rel=1e-6)), setting


def test_perplexity_is_infinite_where_it_overflows() -> None:
    assert HeldOutLoss(loss=math.log(7), target_tokens=1, num_rows=1).perplexity == pytest.approx(7)
    assert HeldOutLoss(loss=1000.0, target_tokens=1, num_rows=1).perplexity == math.inf


def test_the_loss_of_answered_rows_has_an_interval_of_its_token_weighted_mean() -> None:
    """Rows of 1 and of 9 targets with the same loss a token differ in nothing that is drawn."""
    rows = [Answered(loss=2.0 * number, num_targets=number) for number in (1, 9) * 20]
    uneven = [*rows, *(Answered(loss=0.5 * number, num_targets=number) for number in (1, 9) * 20)]

    alike, found = loss_of_answers(rows), loss_of_answers([*uneven, Answered(loss=0.0)])

    assert alike is not None and found is not None
    assert alike.intervals == {"loss": (2.0, 2.0), "perplexity": pytest.approx((math.exp(2), math.exp(2)))}
    assert (found.loss, found.num_rows) == (pytest.approx(1.25), 80)
    low, high = found.intervals["loss"]
    assert 0.9 < low < 1.1 and 1.4 < high < 1.6
    assert found.intervals["perplexity"] == (math.exp(low), math.exp(high))
    assert loss_of_answers(rows[:1]).intervals == {}  # type: ignore[union-attr]


@pytest.mark.world
def test_a_split_without_targets_has_no_loss(worlds: Worlds, session_folder: Path) -> None:
    folder = str(write_tiny_model("gpt2", session_folder))

    assert worlds.run(1, loss_without_targets, folder) == [(None, None, 0)]
