"""Every held-out token counts once, whatever batches and ranks the rows fall into."""

import math
from pathlib import Path
from typing import Any

import pytest
from heldout_cases import NUM_ROWS, held_out_losses, loss_without_targets, losses_of_rows
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.evaluate.heldout import HeldOutLoss

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
    }


@pytest.mark.world
@pytest.mark.parametrize("layout", ["dp=2", "dp=2 x tp=2", "dp=4"])
def test_every_row_counts_once_for_row_counts_that_no_batch_divides(
    losses: dict[str, Any], layout: str
) -> None:
    for index, setting in enumerate(SETTINGS):
        counted = losses["rows"][: min(setting["num_rows"], setting["max_rows"] or NUM_ROWS)]
        targets = sum(number for _, number in counted)
        mean = sum(loss for loss, _ in counted) / targets
        for rank in losses[layout]:
            loss, found_targets = rank[index]
            assert found_targets == targets, setting
            assert loss == pytest.approx(mean, rel=1e-6), setting


def test_perplexity_is_infinite_where_it_overflows() -> None:
    assert HeldOutLoss(loss=math.log(7), target_tokens=1, num_rows=1).perplexity == pytest.approx(7)
    assert HeldOutLoss(loss=1000.0, target_tokens=1, num_rows=1).perplexity == math.inf


@pytest.mark.world
def test_a_split_without_targets_has_no_loss(worlds: Worlds, session_folder: Path) -> None:
    folder = str(write_tiny_model("gpt2", session_folder))

    assert worlds.run(1, loss_without_targets, folder) == [(None, None, 0)]
