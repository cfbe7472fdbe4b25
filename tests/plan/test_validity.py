"""What a start would refuse is refused by the search and by `--layout` too, for the same reasons."""

from typing import Any

import pytest
from plan_questions import GPT2_XL, LLAMA_70B, layout, machine, question

from megatune.config import resolve_batch
from megatune.plan.layout_keys import with_layout
from megatune.plan.question import layout_of
from megatune.plan.refusal import refuse_all
from megatune.plan.search import Space, search
from megatune.plan.validity import problems_of, start_problems

FEW_HEADS = {**LLAMA_70B, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 2048}
NORM_A_HEAD = {**LLAMA_70B, "model_type": "cohere", "use_qk_norm": True}
NEIGHBOURS = {"zero_optimization": {"zero_hpz_partition_size": 8}}
STAGE_3_ONLY = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("config", "policy", "changes", "word"),
    [
        (FEW_HEADS, None, {"tensor_parallel": 8, "data_parallel": 1, "accumulation": 64}, "4 attention"),
        (NORM_A_HEAD, None, {"tensor_parallel": 4, "data_parallel": 2, "accumulation": 32}, "use_qk_norm"),
        (GPT2_XL, None, {"zero_stage": 1, "offload": "all"}, "needs parallel.zero_stage 3"),
        (GPT2_XL, None, {"zero_stage": 0, "offload": "optimizer"}, "needs parallel.zero_stage 1"),
        (GPT2_XL, None, {"zero_stage": 2, "offload": "nvme:/scratch"}, "needs parallel.zero_stage 3"),
        (GPT2_XL, NEIGHBOURS, {"tensor_parallel": 2, "data_parallel": 4, "accumulation": 16}, "mix the ranks"),
        (GPT2_XL, STAGE_3_ONLY, {"zero_stage": 1}, "zero_optimization.stage is 3 in the policy file"),
    ],
)  # fmt: skip
def test_a_layout_that_no_start_would_train_is_refused_by_all(
    config: dict[str, Any], policy: Any, changes: dict[str, Any], word: str
) -> None:
    asked, refused = question(config, policy=policy), layout(**changes)
    found = problems_of(asked, refused)
    assert any(word in problem for problem in found), found

    run = with_layout(asked.run, refused)
    model = asked.work.model
    batch = resolve_batch(run, refused.data_parallel)
    assert start_problems(run, batch, policy or {}, model.config, model.shape) == found

    space = Space(
        tensor_parallel=refused.tensor_parallel, zero_stage=refused.zero_stage, offload=refused.offload
    )
    results = search(asked, space)
    assert results.nearest is None
    assert any(word in one.reason for one in results.impossible)


def test_nothing_that_is_judged_would_be_refused() -> None:
    for policy in (None, NEIGHBOURS, STAGE_3_ONLY):
        asked = question(GPT2_XL, machine(2), policy)
        found = search(asked)
        judged = (*found.fitting, *found.too_big)
        assert judged
        assert not any(problems_of(asked, one.layout) for one in judged)


def test_what_is_refused_for_one_reason_is_told_once() -> None:
    reasons = [one.reason for one in search(question(GPT2_XL, machine(2), NEIGHBOURS)).impossible]
    assert len(reasons) == len(set(reasons))
    assert sum("mix the ranks" in reason and "tp_size is 2" in reason for reason in reasons) >= 1


def test_what_no_layout_mends_is_told_of_all_and_without_advice_on_degrees() -> None:
    low = question(precision="fp32", policy={"bf16": {"enabled": True}})
    found = search(low)
    assert found.nearest is None
    error = str(refuse_all(low, found))
    assert "every layout: bf16.enabled is true in the policy file" in error
    assert "number of devices" not in error

    odd = question(train={"global_batch_size": 7})
    error = str(refuse_all(odd, search(odd)))
    assert "Batches that divide: train.global_batch_size = " in error


def test_weights_kept_whole_leave_no_layout_with_offload() -> None:
    found = search(question(parallel={"keep_gathered": True}))
    assert {one.layout.offload for one in found.fitting} == {"none"}
    assert any("without offload" in one.reason for one in found.impossible)


def test_a_degree_that_the_run_file_asks_for_is_judged_on_several_nodes_too() -> None:
    asked = question(LLAMA_70B, machine(2, "h100-80gb"))
    wide = Space(tensor_parallel=8)
    four = question(
        {**LLAMA_70B, "num_key_value_heads": 64}, machine(2, "h100-80gb"), parallel={"tp_size": 16}
    )
    assert search(asked, wide).nearest is not None
    assert search(four, Space(tensor_parallel=16)).nearest is not None
    assert all(one.layout.tensor_parallel < 16 for one in search(four).fitting)
    assert layout_of(four.run, 16).tensor_parallel == 16
