"""What changes how a step is computed must not change what it computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_cases import refuse_fp16, train_in_fp16, train_with_dropout
from step_cases import Case, Trace, train_cases
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

WHOLE = [[[[0], [1], [2], [3], [4], [5], [6], [7], [8]]]]
SHARED = [[[[0], [1, 2], [3]], [[4]]], [[[5], [6]], [[7, 8]]]]
MODELS = ["gpt2", "llama"]
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "no leaf modules": {"parallel": {"leaf_modules": False}},
}
BF16 = {"precision": "bf16"}

# bf16 keeps 8 bits: a rounding is off by at most 2^-9 = 2e-3 of the value. The loss is a mean over some 50
# target tokens with rounding errors of their own, so it stays within half of one rounding; the norm, a
# root of squares of gradients that all carry some roundings, within two. (Measured: 5e-4 and 2.2e-3.)
BF16_LOSS, BF16_NORM = 1e-3, 4e-3


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[str, Trace]:
    folders = {model: str(write_tiny_model(model, session_folder)) for model in MODELS}
    plain: dict[str, Case] = {}
    cases: dict[str, Case] = {}
    for model in MODELS:
        plain[f"{model} one process"] = Case(layout=WHOLE, model=model, settings=BF16)
        plain[f"{model} one process fp32"] = Case(layout=WHOLE, model=model)
        for tp in (1, 2):
            base = Case(layout=SHARED, model=model, tp=tp)
            cases[f"{model} tp={tp}"] = base
            cases[f"{model} tp={tp} bf16"] = replace(base, settings=BF16)
            cases |= {
                f"{model} tp={tp} {option}": replace(base, settings=value)
                for option, value in OPTIONS.items()
            }
    found: dict[str, Trace] = worlds.run(1, train_cases, folders, plain, True)[0]
    for num_ranks in (2, 4):
        mine = {name: case for name, case in cases.items() if case.num_ranks == num_ranks}
        found |= worlds.run(num_ranks, train_cases, folders, mine, False)[0]
    return found


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_an_option_that_saves_memory_or_time_changes_no_number(
    traces: dict[str, Trace], model: str, tp: int, option: str
) -> None:
    found, expected = traces[f"{model} tp={tp} {option}"], traces[f"{model} tp={tp}"]

    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6)
    for name, weight in expected.weights.items():
        assert np.abs(found.weights[name] - weight).max() < 1e-6, name


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_bf16_on_a_layout_is_bf16_on_one_process_within_its_rounding(
    traces: dict[str, Trace], model: str, tp: int
) -> None:
    found, expected = traces[f"{model} tp={tp} bf16"], traces[f"{model} one process"]

    assert found.losses == pytest.approx(expected.losses, rel=BF16_LOSS)
    assert found.norms == pytest.approx(expected.norms, rel=BF16_NORM)
    in_fp32 = traces[f"{model} one process fp32"]
    assert found.losses != pytest.approx(in_fp32.losses, rel=1e-6), "nothing was computed in bf16"


@pytest.mark.parametrize("tp", [1, 2])
def test_bf16_steps_are_kept_in_fp32_masters(traces: dict[str, Trace], tp: int) -> None:
    weights = traces[f"gpt2 tp={tp} bf16"].weights

    kept = [(weight.view(np.uint32) & 0xFFFF).any() for weight in weights.values()]

    assert all(kept), "some weights have no more bits than bf16 has"


@pytest.fixture(scope="module")
def dropout_model(session_folder: Path) -> str:
    return str(write_tiny_model("gpt2", session_folder, resid_pdrop=0.1))


def test_dropout_draws_equally_inside_a_tensor_group_and_differently_across_data_ranks(
    worlds: Worlds, dropout_model: str
) -> None:
    ranks = worlds.run(4, train_with_dropout, dropout_model, True)

    losses = [rank["losses"] for rank in ranks]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert all(one != other for one, other in zip(losses[0], losses[2], strict=True))
    assert drift(ranks[0], ranks[1]) == 0
    assert drift(ranks[2], ranks[3]) == 0


def test_unequal_seeds_in_a_tensor_group_would_be_seen(worlds: Worlds, dropout_model: str) -> None:
    ranks = worlds.run(4, train_with_dropout, dropout_model, False)

    assert drift(ranks[0], ranks[1]) > 1e-4


def drift(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between the replicated weights of two ranks."""
    pairs = [(weight, other["replicated"][name]) for name, weight in one["replicated"].items()]
    assert len(pairs) > 10, "layer norms, positions and the biases of row layers are replicated"
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids=lambda stage: f"stage {stage}")
def fp16(request: pytest.FixtureRequest, worlds: Worlds, session_folder: Path) -> dict[str, Any]:
    """Two ranks in fp16, without overflows and with three: one before batch 1, two before batch 2."""
    folder = str(write_tiny_model("gpt2", session_folder))
    return {
        "calm": worlds.run(2, train_in_fp16, folder, request.param, {})[0],
        "overflows": worlds.run(2, train_in_fp16, folder, request.param, {1: 1, 2: 2})[0],
    }


def test_fp16_computes_in_fp16_with_a_scaled_loss(fp16: dict[str, Any]) -> None:
    calm = fp16["calm"]

    assert calm["dtypes"] == {"torch.float16"}
    assert [step["scale"] for step in calm["steps"]] == [2.0**16] * 4
    assert not any(step["skipped"] for step in calm["steps"])
    assert calm["steps"][0]["loss"] > calm["steps"][0]["norm"] * 0.5, (
        "the norm is that of the unscaled gradient"
    )


def test_an_fp16_overflow_on_one_rank_is_skipped_by_all_and_moves_no_weight(fp16: dict[str, Any]) -> None:
    steps = fp16["overflows"]["steps"]

    assert [step["skipped"] for step in steps] == [False, True, False, True, True, False, False]
    assert [step["moved"] for step in steps] == [not step["skipped"] for step in steps]
    assert all((step["norm"] is None) == step["skipped"] for step in steps)


def test_repeated_fp16_overflows_lower_the_loss_scale(fp16: dict[str, Any]) -> None:
    scales = [step["scale"] for step in fp16["overflows"]["steps"]]

    assert scales[:3] == [2.0**16] * 3, "one overflow is forgiven"
    assert scales[-1] < 2.0**16


def test_training_after_an_fp16_overflow_is_as_if_it_had_not_been(fp16: dict[str, Any]) -> None:
    taken = [step for step in fp16["overflows"]["steps"] if not step["skipped"]]

    # A lower scale rounds other small gradients to zero: hence not bit for bit.
    assert [s["loss"] for s in taken] == pytest.approx([s["loss"] for s in fp16["calm"]["steps"]], rel=1e-3)
    for name, weight in fp16["calm"]["weights"].items():
        assert np.abs(fp16["overflows"]["weights"][name] - weight).max() < 1e-3, name


def test_fp16_is_refused_where_the_device_has_none_before_weights_load(
    worlds: Worlds, session_folder: Path
) -> None:
    folder = write_tiny_model("llama", session_folder, vocab_size=103)
    (folder / "model.safetensors").unlink()  # so that reading weights would be another error

    words = worlds.run(2, refuse_fp16, str(folder))

    assert words[0] == words[1]
    assert all(part in words[0] for part in ("precision", "fp16", "cpu", "bf16", "fp32"))
