"""Every ZeRO stage takes the steps of one process, and is really what it is called."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_cases import describe, left_out
from step_cases import Case, Trace, train_cases
from test_engine_options import BF16, BF16_LOSS, BF16_NORM, SHARED, WHOLE
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

STAGES = [0, 1, 2]
MODELS = ["gpt2-5-heads", "llama"]  # uneven heads and transposes; replicated norms beside cut matrices
ADAMW = {"train": {"optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.1, "adam_epsilon": 1e-5}}


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[str, Trace]:
    """Two data-parallel ranks with unequal micro-batches; tp 1 and 2; fp32 and bf16; and one process."""
    folders = {model: str(write_tiny_model(model, session_folder)) for model in MODELS}
    plain: dict[str, Case] = {}
    cases: dict[str, Case] = {}
    for model in MODELS:
        plain[model] = Case(layout=WHOLE, model=model)
        plain[f"{model} bf16"] = replace(plain[model], settings=BF16)
        plain[f"{model} adamw"] = replace(plain[model], settings=ADAMW, learning_rate=1e-3)
        for stage in STAGES:
            for tp in (1, 2):
                settings: dict[str, Any] = {"parallel": {"zero_stage": stage}}
                base = Case(layout=SHARED, model=model, tp=tp, settings=settings)
                name = f"{model} stage {stage} tp={tp}"
                cases[name] = base
                cases[f"{name} bf16"] = replace(base, settings=settings | BF16)
                cases[f"{name} adamw"] = replace(base, settings=settings | ADAMW, learning_rate=1e-3)
    found: dict[str, Trace] = worlds.run(1, train_cases, folders, plain, True)[0]
    for num_ranks in (2, 4):
        mine = {name: case for name, case in cases.items() if case.num_ranks == num_ranks}
        found |= worlds.run(num_ranks, train_cases, folders, mine, False)[0]
    return found


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", MODELS)
def test_a_stage_trains_like_one_process(traces: dict[str, Trace], model: str, stage: int, tp: int) -> None:
    for optimizer in ("", " adamw"):
        found, expected = traces[f"{model} stage {stage} tp={tp}{optimizer}"], traces[f"{model}{optimizer}"]
        assert found.losses == pytest.approx(expected.losses, rel=1e-5)
        assert found.norms == pytest.approx(expected.norms, rel=1e-4)
        for name, weight in expected.weights.items():
            assert np.abs(found.weights[name] - weight).max() < 1e-5, name


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", MODELS)
def test_a_stage_in_bf16_is_bf16_on_one_process_within_its_rounding(
    traces: dict[str, Trace], model: str, stage: int, tp: int
) -> None:
    found, expected = traces[f"{model} stage {stage} tp={tp} bf16"], traces[f"{model} bf16"]

    assert found.losses == pytest.approx(expected.losses, rel=BF16_LOSS)
    assert found.norms == pytest.approx(expected.norms, rel=BF16_NORM)
    assert found.losses != pytest.approx(traces[model].losses, rel=1e-6), "nothing was computed in bf16"
    kept = [(weight.view(np.uint32) & 0xFFFF).any() for weight in found.weights.values()]
    assert all(kept), "some weights have no more bits than bf16 has"


@pytest.mark.parametrize(
    ("stage", "precision", "words"),
    [
        (0, "bf16", "plain torch, ZeRO stage 0 (nothing divided) over dp=2 x tp=2"),
        (1, "bf16", "BF16_Optimizer (stage 1) over dp=2 x tp=2"),
        (1, "fp32", "DeepSpeedZeroOptimizer (stage 1)"),
        (2, "bf16", "DeepSpeedZeroOptimizer (stage 2)"),
        (3, "bf16", "DeepSpeedZeroOptimizer_Stage3 (stage 3)"),
    ],
)
def test_the_engine_that_runs_is_named(
    worlds: Worlds, session_folder: Path, stage: int, precision: str, words: str
) -> None:
    folder = str(write_tiny_model("llama", session_folder))
    ranks = worlds.run(4, describe, folder, stage, precision)

    assert all(words in rank["description"] for rank in ranks)
    # A stage below the asked one, as DeepSpeed would run it without a word, is found from the tensors.
    assert all(rank["found_as_another_stage"] == [] for rank in ranks)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_left_out_changes_no_bit_and_the_next_is_as_if_it_had_not_been(
    worlds: Worlds, session_folder: Path, stage: int, precision: str
) -> None:
    folder = str(write_tiny_model("llama", session_folder))
    found = worlds.run(4, left_out, folder, stage, precision)[0]

    assert found["outcomes"] == [(True, True), (False, False)]
    assert found["moved by the step left out"] == []
    assert found["differs from a run without it"] == []
