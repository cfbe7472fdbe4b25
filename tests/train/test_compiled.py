"""Blocks through torch.compile give the step that they give without, under each way to divide a model."""

from pathlib import Path

import numpy as np
import pytest
from step_cases import Case, Trace, train_cases
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

MODEL = "llama-tied-9-heads"
COMPILED = {"compile": True, "gradient_checkpointing": True}
LAYOUTS = {
    "zero 3, gathered again and recomputed": Case(
        layout=[[[[0, 1], [2, 3]]], [[[4, 5, 6], [7, 8]]]],
        model=MODEL,
        settings={"model": COMPILED, "parallel": {"keep_gathered": False}},
    ),
    "two tensor ranks": Case(
        layout=[[[[0, 1], [2, 3]], [[4, 5, 6], [7, 8]]]],
        tp=2,
        model=MODEL,
        settings={"model": {"compile": True}},
    ),
}
WHOLE = Case(layout=[[[[0], [1], [2], [3], [4], [5], [6], [7], [8]]]], model=MODEL)


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> tuple[dict[str, Trace], Trace]:
    """What compiled blocks gave, and the same training in one process that compiles nothing."""
    folders = {MODEL: str(write_tiny_model(MODEL, session_folder))}
    reference = worlds.run(1, train_cases, folders, {"whole": WHOLE}, True)[0]["whole"]
    return worlds.run(2, train_cases, folders, LAYOUTS, False)[0], reference


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_blocks_step_like_plain_ones(traces: tuple[dict[str, Trace], Trace], layout: str) -> None:
    found, expected = traces[0][layout], traces[1]

    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    worst = max(
        float(np.abs(found.weights[name] - expected.weights[name]).max()) for name in expected.weights
    )
    assert worst < 1e-5
