"""The bytes that the time model lets ranks send are those that the collectives of a real step carry."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from plan_questions import layout, question, run_of
from tiny_models import write_tiny_model
from traffic_cases import sent_bytes
from worlds import Worlds

from megatune.plan.assess import assess, timed
from megatune.plan.buckets import Buckets, reused_params
from megatune.plan.layout import Layout
from megatune.plan.practice import practice_of
from megatune.plan.traffic import data_traffic
from megatune.plan.weights import count_model

NUM_RANKS = 2


@pytest.mark.world
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("stage", "precision", "kept", "reuse"),
    [
        (0, "bf16", False, 0),
        (1, "bf16", False, 0),
        (2, "bf16", False, 0),
        (3, "bf16", False, 0),
        (3, "bf16", False, 10**9),
        (3, "bf16", True, 0),
        (0, "fp32", False, 0),
        (1, "fp32", False, 0),
        (2, "fp32", False, 0),
        (3, "fp32", False, 0),
    ],
)
def test_a_step_sends_what_is_planned(
    worlds: Worlds, tmp_path: Path, stage: int, precision: str, kept: bool, reuse: int, accumulation: int
) -> None:
    folder = write_tiny_model("llama", tmp_path)
    model = count_model(json.loads((folder / "config.json").read_text()))
    shape = Layout(
        tensor_parallel=1,
        data_parallel=NUM_RANKS,
        micro_batch=1,
        accumulation=accumulation,
        gradient_checkpointing=False,
        zero_stage=stage,
    )
    practice = replace(
        practice_of(run_of(precision=precision), model, gradient_checkpointing=False),
        keeps_gathered=kept,
        reused_share=min(1.0, reused_params(Buckets(max_reuse=reuse)) / model.num_params),
    )

    sent = worlds.run(NUM_RANKS, sent_bytes, str(folder), stage, precision, accumulation, kept, reuse)[0]

    traffic = data_traffic(shape, practice)
    passes = (*traffic.a_micro_batch * accumulation, *traffic.a_step)
    planned = sum(one.bytes_a_weight for one in passes)
    assert sum(sent.values()) / model.num_params == pytest.approx(planned, rel=0.02), sent


def test_gathered_weights_that_stay_are_sent_less_often() -> None:
    """The time model hears of `keep_gathered`, and of what DeepSpeed keeps from forward to backward."""
    asked = {"policy": {"zero_optimization": {"stage3_max_reuse_distance": 0}}}
    shape = layout(micro_batch=1, accumulation=8)
    released, reused, kept = (
        assess(question(**more, parallel={"keep_gathered": keep}), shape).phases
        for more, keep in ((asked, False), ({}, False), ({}, True))
    )

    assert released is not None and reused is not None and kept is not None
    assert kept.zero_s < reused.zero_s < released.zero_s
    assert kept.forward_s == reused.forward_s == released.forward_s


def test_activations_of_four_bytes_take_twice_as_long_to_sum() -> None:
    asked = question()
    wide = replace(asked, practice=replace(asked.practice, activation_bytes=4))
    rates = asked.rates()
    assert rates is not None
    instant = replace(rates, network=replace(rates.network, link_latency_s=0.0))
    shape = layout(tensor_parallel=5, data_parallel=1)

    assert timed(wide, shape, instant).tensor_parallel_s == pytest.approx(
        2 * timed(asked, shape, instant).tensor_parallel_s
    )


def test_every_micro_batch_moves_gradients_that_are_added_up_on_the_host() -> None:
    once, often = (
        assess(question(), layout(offload="optimizer", micro_batch=8 // count, accumulation=count)).phases
        for count in (1, 8)
    )
    assert once is not None and often is not None

    # bf16 weights up once; gradients down and up with each micro-batch, and down at the end
    assert often.offload_s / once.offload_s == pytest.approx((8 * 8 + 4 + 2) / (8 + 4 + 2))
