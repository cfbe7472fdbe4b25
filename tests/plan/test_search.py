"""The search keeps the global batch, takes the fastest layout, and says why not each other one."""

from dataclasses import replace
from typing import Any

import pytest
from plan_questions import GPT2_XL, LLAMA_70B, layout, machine, question, run_of

from megatune.errors import PlanError
from megatune.plan.answer import notes, plan_answer
from megatune.plan.assess import assess
from megatune.plan.forecast import forecast
from megatune.plan.hardware import ACCELERATORS, accelerator_named
from megatune.plan.links import Link, Links
from megatune.plan.question import Machine, layout_of, make_question
from megatune.plan.rates import Measured
from megatune.plan.refusal import refuse_all, refuse_too_big
from megatune.plan.search import Found, Rejected, pareto_front, search


def rejected(found: Found) -> list[Rejected]:
    """Why each layout but the best was not taken."""
    return found.rejected_beside(found.best)


def test_every_judged_layout_keeps_the_global_batch_and_the_devices() -> None:
    found = search(question())
    for judged in (*found.fitting, *found.too_big):
        assert judged.layout.global_sequences == 64
        assert judged.layout.num_devices == 8


def test_the_best_is_the_fastest_that_fits() -> None:
    found = search(question())
    assert found.best is not None
    assert found.best.ledger.fits
    assert found.best.step_s == min(judged.step_s for judged in found.fitting if judged.step_s)


def test_every_layout_but_the_best_is_rejected_with_a_reason() -> None:
    found = search(question())
    whole = [one for one in rejected(found) if "micro_batch" in one.layout]
    assert len(whole) == len(found.fitting) + len(found.too_big) - 1
    assert all(one.reason for one in rejected(found))


def test_degrees_that_cannot_be_are_rejected_by_name() -> None:
    reasons = {
        one.layout["tp"]: one.reason
        for one in rejected(search(question(LLAMA_70B, machine(4, "h100-80gb"))))
        if one.layout.keys() == {"tp", "dp"}
    }
    assert "several nodes" in reasons[16]
    narrow = {**GPT2_XL, "n_head": 4}
    reasons = {
        one.layout["tp"]: one.reason for one in rejected(search(question(narrow))) if "tp" in one.layout
    }
    assert "4 attention head" in reasons[8]
    odd = search(question(train={"global_batch_size": 12}))
    assert any("12 sequences does not divide over 8" in one.reason for one in rejected(odd))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [(2, "3, 5-7, 9-15 (do not divide 16 devices)."), (16, "above 64 (no node has so many devices).")],
)
def test_degrees_that_are_not_looked_at_are_named_in_one_line(nodes: int, words: str) -> None:
    skipped = search(question(on=machine(nodes), train={"global_batch_size": 128})).skipped
    assert skipped is not None
    assert words in skipped
    assert "\n" not in skipped


def test_a_disk_is_looked_at_where_the_run_file_names_its_folder() -> None:
    def offloads(**parallel: Any) -> set[str]:
        found = search(question(parallel=parallel))
        return {one.layout.offload for one in (*found.fitting, *found.too_big)}

    assert "nvme:/scratch" not in offloads()
    assert offloads(offload="nvme:/scratch") == {"none", "optimizer", "all", "nvme:/scratch"}


def test_a_layout_without_a_time_does_not_come_before_those_with_one() -> None:
    found = search(question(parallel={"offload": "nvme:/scratch"}))
    assert found.best is not None
    assert found.best.step_s is not None
    assert any(one.step_s is None for one in found.fitting)
    assert all(point.step_s is not None for point in pareto_front(found.fitting))


def test_where_only_the_batch_does_not_divide_the_batches_that_do_are_named() -> None:
    asked = question(LLAMA_70B, machine(1250, "h100-80gb"), train={"global_batch_size": 128})
    text = str(refuse_all(asked, search(asked)))
    assert "tp=1 dp=10000: the global batch of 128 sequences does not divide" in text
    assert "train.global_batch_size = 1250 (tp=8 dp=1250), 2500 (tp=4 dp=2500)" in text
    assert "{" not in text
    tokens = question(
        LLAMA_70B, machine(1250, "h100-80gb"), train={"global_batch_size": None, "tokens_per_step": 2**17}
    )
    assert f"train.tokens_per_step = {1250 * 1024} (tp=8" in str(refuse_all(tokens, search(tokens)))


def test_layouts_with_other_batches_are_compared_by_the_token() -> None:
    asked = question(LLAMA_70B, machine(2, "h100-80gb"))
    small, large = (
        assess(asked, layout(tensor_parallel=8, data_parallel=2, accumulation=count)) for count in (1, 64)
    )
    assert small.step_s and large.step_s
    assert large.step_s > 20 * small.step_s, "the steps themselves say nothing"
    assert (large.beside(small) or "").endswith("faster"), "its fixed costs are spread over more tokens"
    cut = assess(asked, layout(tensor_parallel=8, data_parallel=2, accumulation=1, micro_batch=64))
    assert small.sequence_s and cut.sequence_s
    assert small.sequence_s > 2 * cut.sequence_s
    assert small.beside(cut) == f"{small.sequence_s / cut.sequence_s:.1f} times slower"


def test_nothing_on_the_front_is_beaten_in_both_memory_and_speed() -> None:
    found = search(question(LLAMA_70B, machine(4, "h100-80gb")))
    front = pareto_front(found.fitting)
    assert front[0] is found.best
    assert len(front) > 2
    for point in front:
        assert point.step_s is not None
        assert not any(
            other.ledger.device_total < point.ledger.device_total
            and other.step_s is not None
            and other.step_s < point.step_s
            for other in found.fitting
        )


def test_a_layout_that_does_not_fit_is_refused_with_the_three_nearest_that_do() -> None:
    asked = question(LLAMA_70B, machine(4, "h100-80gb"))
    judged = assess(asked, layout(data_parallel=32, micro_batch=2, accumulation=1))
    assert not judged.ledger.fits
    text = str(refuse_too_big(judged, search(asked)))
    assert "more than the 80.00 GiB" in text
    assert "activations" in text
    assert text.count("\n  tp=") == 3


def test_where_nothing_fits_the_three_nearest_and_what_to_do_are_named() -> None:
    asked = question(LLAMA_70B, machine(1, "a100-40gb", host_memory_bytes=10**11))
    found = search(asked)
    assert found.best is None
    text = str(refuse_all(asked, found))
    assert text.count("\n  tp=") == 3
    assert "Use more devices" in text


def test_a_device_without_constants_is_planned_by_memory_alone() -> None:
    found = search(question(on=machine(1, "b200")))
    assert found.best is not None
    assert found.best.step_s is None
    assert found.best.layout.offload == "none"
    assert not found.best.layout.gradient_checkpointing


def test_fp32_has_no_times() -> None:
    assert assess(question(precision="fp32"), layout()).step_s is None


def test_links_that_were_measured_take_the_place_of_the_makers() -> None:
    slow = Link(latency_s=1e-3, bytes_per_s=1e9, num_points=9)
    links = Links(
        measured_at="2026-01-01T00:00:00Z", backend="nccl", num_nodes=1, intra_node=slow, inter_node=None
    )
    before, after = (
        assess(question(on=on), layout()) for on in (machine(), machine(measured=Measured(links=links)))
    )
    assert before.phases and after.phases
    assert after.phases.zero_s > 2 * before.phases.zero_s
    assert after.phases.forward_s == before.phases.forward_s


def test_the_phases_show_what_a_layout_does() -> None:
    asked = question()
    plain, again, cut, away = (
        assess(asked, choice).phases
        for choice in (
            layout(),
            layout(gradient_checkpointing=True),
            layout(tensor_parallel=2, data_parallel=4, accumulation=16),
            layout(offload="all"),
        )
    )
    assert plain and again and cut and away
    assert plain.recompute_s == plain.tensor_parallel_s == plain.offload_s == plain.pipeline_s == 0
    assert again.recompute_s == pytest.approx(plain.forward_s, rel=0.1)
    assert cut.tensor_parallel_s > 0
    assert away.offload_s > 0
    assert away.optimizer_s > plain.optimizer_s


def test_gathering_module_by_module_is_slower_than_block_by_block() -> None:
    blocks, modules = (question(parallel={"leaf_modules": leaf}) for leaf in (True, False))
    (one, many) = (assess(asked, layout()).phases for asked in (blocks, modules))
    assert one and many
    assert many.zero_s > one.zero_s


def test_the_forecast_counts_jobs_hours_energy_and_money() -> None:
    asked = question()
    judged = assess(asked, layout())
    assert judged.step_s is not None
    ahead = forecast(asked, judged, num_steps=1000, limit_s=700, reserve_s=100, price_per_gpu_hour=2.0)
    assert ahead.total_s == pytest.approx(1000 * judged.step_s)
    assert ahead.num_jobs == -(-ahead.total_s // 600)
    assert ahead.gpu_hours == pytest.approx(ahead.total_s * 8 / 3600)
    assert ahead.energy_kwh == pytest.approx(ahead.gpu_hours * 0.4)
    assert ahead.cost == pytest.approx(2 * ahead.gpu_hours)
    unknown = forecast(asked, judged, num_steps=None, limit_s=700, reserve_s=0, price_per_gpu_hour=None)
    assert (unknown.total_s, unknown.num_jobs, unknown.cost) == (None, None, None)


def test_a_run_file_that_leaves_nothing_open_gives_its_layout() -> None:
    full = run_of(
        model={"gradient_checkpointing": True},
        parallel={"tp_size": 2, "offload": "none"},
        train={"per_device_train_batch_size": 4},
    )
    assert layout_of(full, 8) == layout(
        tensor_parallel=2, data_parallel=4, micro_batch=4, accumulation=4, gradient_checkpointing=True
    )


def test_a_device_is_asked_for_by_the_names_there_are() -> None:
    with pytest.raises(PlanError, match=r"v100.*a100-80gb.*cpu"):
        accelerator_named("v100")
    assert {accelerator_named(row.name) for row in ACCELERATORS} == set(ACCELERATORS)


def test_memory_nobody_knows_is_asked_for() -> None:
    with pytest.raises(PlanError, match=r"slurm\.mem"):
        make_question(run_of(), GPT2_XL, Machine(nodes=1, ranks_per_node=2, accelerator=None), {})


def test_the_answer_holds_what_programs_read() -> None:
    asked = question()
    found = search(asked)
    assert found.best is not None
    ahead = forecast(asked, found.best, num_steps=None, limit_s=None, reserve_s=0, price_per_gpu_hour=None)
    answer = plan_answer(asked, found.best, found, ahead)
    assert answer["model"]["num_params"] == sum(answer["model"]["num_params_by_component"].values())
    assert answer["memory"]["device_total_bytes"] == sum(answer["memory"]["device_bytes"].values())
    assert answer["time"]["step_seconds"] == pytest.approx(sum(answer["time"]["by_phase"].values()))
    assert answer["layout"]["tp"] * answer["layout"]["dp"] == 8
    assert answer["time"]["mfu_causal"] < answer["time"]["mfu"]
    assert answer["fits"] is True
    flops = answer["model"]["flops_per_token"]
    assert flops["model_causal"] < flops["model"] < flops["hardware_with_checkpointing"]
    rate = answer["time"]["tokens_per_second_per_device"]
    assert answer["time"]["mfu"] == pytest.approx(rate * flops["model"] / 312e12)


def test_the_rates_are_those_of_the_layouts_own_batch() -> None:
    asked = question()
    once, twice = assess(asked, layout()), assess(asked, layout(accumulation=16))
    assert once.step_s and twice.step_s and once.mfu and twice.mfu
    assert twice.step_s == pytest.approx(2 * once.step_s, rel=0.05)
    assert twice.mfu == pytest.approx(once.mfu, rel=0.05)


@pytest.mark.parametrize(
    ("config", "changes", "word"),
    [
        (GPT2_XL, {"accumulation": 16}, "takes 128 sequences a step, the run file 64"),
        ({**GPT2_XL, "n_positions": 512}, {}, "beyond the model's 512 positions"),
        (
            {**LLAMA_70B, "model_type": "cohere", "use_qk_norm": True},
            {},
            "tp_size 1: this model has use_qk_norm",
        ),
    ],
)
def test_what_the_reader_must_know_is_noted(config: Any, changes: Any, word: str) -> None:
    asked = question(config)
    (note,) = notes(asked, assess(asked, layout(**changes)))
    assert word in note
    assert notes(question(), assess(question(), layout())) == []


def test_ten_thousand_devices_are_searched() -> None:
    asked = question(LLAMA_70B, machine(1250, "h100-80gb"), train={"global_batch_size": 20000})
    assert search(asked).best is not None
    assert replace(asked, num_devices=10_000) == asked
