"""The loss is taken in chunks only where that is the model's own loss."""

from pathlib import Path

import pytest
from loss_check_cases import choose
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world


@pytest.fixture
def folder(session_folder: Path) -> str:
    return str(write_tiny_model("llama", session_folder))


def test_a_model_that_leaves_its_logits_alone_is_trained_in_chunks(worlds: Worlds, folder: str) -> None:
    words, is_chunked, loss = worlds.run(1, choose, folder, "auto", 1.0)[0]
    whole = worlds.run(1, choose, folder, False, 1.0)[0]

    assert is_chunked and "in chunks" in words
    assert not whole[1] and "train.chunked_loss is false" in whole[0]
    assert loss == pytest.approx(whole[2], rel=1e-5)


def test_a_model_that_changes_its_logits_is_trained_from_whole_ones(worlds: Worlds, folder: str) -> None:
    words, is_chunked, loss = worlds.run(1, choose, folder, "auto", 0.5)[0]

    assert not is_chunked and "another one in chunks" in words
    assert loss == pytest.approx(worlds.run(1, choose, folder, False, 0.5)[0][2], rel=1e-6)


def test_chunks_that_were_asked_for_are_refused_where_they_would_be_another_loss(
    worlds: Worlds, folder: str
) -> None:
    words, _, _ = worlds.run(1, choose, folder, True, 0.5)[0]

    assert "train.chunked_loss is true" in words and "train.chunked_loss=auto" in words
