"""Promise 1 for the step: the same documents give the same step, however they are laid out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from step_cases import Case, Trace, train_cases
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

WHOLE = [[[[0], [1], [2], [3], [4], [5], [6], [7], [8]]]]
LAYOUTS: dict[str, Case] = {
    "four micro-batches": Case(layout=[[[[0], [1]], [[2], [3], [8]], [[4], [5]], [[6], [7]]]]),
    "packed": Case(layout=[[[[0, 1, 2], [3, 4], [8, 5, 6], [7]]]]),
    "two data ranks": Case(layout=[[[[0], [1], [2], [3]]], [[[4], [5], [6], [7], [8]]]]),
    "uneven ranks": Case(layout=[[[[0], [1], [2], [3], [4], [5], [6]]], [[[7]]]]),
    "a rank without targets": Case(layout=[[[[0, 1], [2, 3], [4], [5], [6], [7]]], [[[8]]]]),
    "a rank without rows": Case(layout=[[[[0, 1], [2, 3], [8, 4], [5], [6], [7]]], [[]]]),
    "a micro-batch without rows": Case(layout=[[[[0, 1], [2, 3]], [[4, 5]]], [[[6, 7], [8]], []]]),
    "two tensor ranks": Case(layout=WHOLE, tp=2),
    "all at once": Case(layout=[[[[0, 1], [2]], [[3, 4]]], [[[5, 6, 8]], [[7]]]], tp=2),
}
MODELS = ["gpt2", "llama-tied-9-heads"]
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "adam_epsilon": 1e-5},
    "adam": {"optimizer": "adam", "adam_epsilon": 1e-5},
    "adagrad": {"optimizer": "adagrad"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "max_grad_norm": 0.0},
}
TWO_RANKS = [[[[0], [1, 2], [3]], [[4]]], [[[5], [6]], [[7, 8]]]]
OPTIMIZERS = {
    f"{name} tp={tp}": Case(
        layout=TWO_RANKS,
        tp=tp,
        settings={"train": train},
        learning_rate=0.1 if name == "sgd" else 0.01,
    )
    for name, train in SETTINGS.items()
    for tp in (1, 2)
}
CLIPPED = {
    f"clipped tp={tp}": Case(
        layout=TWO_RANKS, tp=tp, settings={"train": {"max_grad_norm": 0.05}}, learning_rate=1
    )
    for tp in (1, 2)
}


def reference_of(case: Case) -> Case:
    """The same training in one process and one padded batch."""
    return replace(case, layout=WHOLE, tp=1)


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[str, tuple[Trace, Trace]]:
    """Case -> (what it gave, what the reference gave); one world of each size runs all its cases."""
    cases = {
        f"{name} {model}": replace(case, model=model) for name, case in LAYOUTS.items() for model in MODELS
    }
    cases |= OPTIMIZERS | CLIPPED
    folders = {model: str(write_tiny_model(model, session_folder)) for model in MODELS}
    references = {repr(reference_of(case)): reference_of(case) for case in cases.values()}
    plain = worlds.run(1, train_cases, folders, references, True)[0]
    found: dict[str, Trace] = {}
    for num_ranks in (1, 2, 4):
        mine = {name: case for name, case in cases.items() if case.num_ranks == num_ranks}
        found |= worlds.run(num_ranks, train_cases, folders, mine, False)[0]
    return {name: (trace, plain[repr(reference_of(cases[name]))]) for name, trace in found.items()}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def felt(weights: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's weights without the biases of the keys.

    They add the same to all logits of a query, so their gradient is rounding noise, and optimizers
    that divide a gradient by its own size turn that into whole steps of the learning rate.
    """
    felt = {name: weight.copy() for name, weight in weights.items()}
    for name, weight in felt.items():
        if name.endswith("attn.c_attn.bias"):
            width = len(weight) // 3
            weight[width : 2 * width] = 0
    return felt


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_does_not_depend_on_how_its_documents_are_laid_out(
    traces: dict[str, tuple[Trace, Trace]], layout: str, model: str
) -> None:
    found, expected = traces[f"{layout} {model}"]

    assert found.targets == expected.targets
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert largest_difference(found.weights, expected.weights) < 1e-5


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer_under_zero_3_steps_like_the_plain_one(
    traces: dict[str, tuple[Trace, Trace]], case: str
) -> None:
    found, expected = traces[case]

    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert largest_difference(felt(found.weights), felt(expected.weights)) < 1e-5


@pytest.mark.parametrize("case", CLIPPED)
def test_gradients_are_clipped_by_the_norm_of_the_whole_model(
    traces: dict[str, tuple[Trace, Trace]], case: str
) -> None:
    found, expected = traces[case]

    assert min(norm for norm in found.norms if norm is not None) > 0.5, "nothing was clipped"
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert largest_difference(found.weights, expected.weights) < 1e-5
