"""What the planner fills in for `auto`."""

from typing import Any

import pytest
from plan_questions import GPT2_XL, LLAMA_70B, machine, run_of

from megatune.config import Run
from megatune.plan.auto import Choice, fill_auto
from megatune.plan.question import Machine, make_question

CHECKPOINTING = "model.gradient_checkpointing"
EVERYTHING = (
    "parallel.tp_size",
    "parallel.zero_stage",
    "parallel.offload",
    "train.per_device_train_batch_size",
)


def filled(
    run: Run, on: Machine | None = None, *, auto: tuple[str, ...] = (), config: dict[str, Any] = GPT2_XL
) -> Choice:
    choice = fill_auto(run, auto, make_question(run, config, on or machine(), {}))
    assert choice is not None
    return choice


def test_auto_checkpointing_is_on_only_where_it_is_needed() -> None:
    roomy = filled(run_of())
    tight = filled(run_of(train={"per_device_train_batch_size": 8}))
    assert roomy.run.model.gradient_checkpointing is False
    assert tight.run.model.gradient_checkpointing is True
    assert (roomy.keys, tight.keys) == ((CHECKPOINTING,), (CHECKPOINTING,))
    assert str(roomy).startswith("planned: model.gradient_checkpointing=false (it needs")
    assert "of 40.00 GiB" in str(roomy)


def test_what_the_run_file_says_itself_stays() -> None:
    run = run_of(model={"gradient_checkpointing": True})
    assert fill_auto(run, (), make_question(run, GPT2_XL, machine(), {})) is None
    chosen = filled(
        run_of(parallel={"zero_stage": 1, "tp_size": 2}), auto=("train.per_device_train_batch_size",)
    ).run
    assert (chosen.parallel.zero_stage, chosen.parallel.tp_size) == (1, 2)
    assert chosen.train.per_device_train_batch_size > 1


def test_everything_that_is_open_is_chosen_as_the_search_would() -> None:
    choice = filled(run_of(), machine(4, "h100-80gb"), auto=EVERYTHING, config=LLAMA_70B)
    run = choice.run
    assert choice.keys == (*EVERYTHING, CHECKPOINTING)
    assert 64 % (32 // run.parallel.tp_size * run.train.per_device_train_batch_size) == 0, (
        "the batch stays 64"
    )
    assert "the fastest of" in choice.why
    assert all(f"{key}=" in str(choice) for key in choice.keys)
    small = filled(run_of(), auto=EVERYTHING)
    assert small.run.parallel.zero_stage < 3, "a model that fits need not gather its weights"
    assert small.run.parallel.offload == "none"


def test_where_nothing_fits_the_layout_that_lacks_least_is_tried() -> None:
    choice = filled(run_of(train={"per_device_train_batch_size": 8}), machine(device_memory_bytes=2**30))
    assert choice.run.model.gradient_checkpointing is True
    assert "too much" in str(choice) and "it is tried" in str(choice)


def test_without_gpus_the_host_is_the_limit_and_no_times_are_needed() -> None:
    cpu = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=8 * 40 * 2**30)
    small = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=8 * 10 * 2**30)
    assert filled(run_of(), cpu).run.model.gradient_checkpointing is False
    assert filled(run_of(), small).run.model.gradient_checkpointing is True
    assert "no times are known" in filled(run_of(), cpu, auto=EVERYTHING).why


@pytest.mark.parametrize("auto", [(), EVERYTHING])
def test_unknown_hardware_is_said_and_the_documented_defaults_hold(auto: tuple[str, ...]) -> None:
    nobody = Machine(nodes=1, ranks_per_node=8, accelerator=None, on_cpu=False, needs_limit=False)
    choice = filled(run_of(), nobody, auto=auto)
    assert "not known" in str(choice)
    assert choice.run == run_of(model={"gradient_checkpointing": False})


def test_a_model_that_cannot_be_planned_trains_with_the_defaults_and_says_why() -> None:
    choice = fill_auto(run_of(), EVERYTHING, None, "model_type 'nobody' has no row")
    assert choice is not None
    assert choice.run.model.gradient_checkpointing is False
    assert choice.why == "not planned: model_type 'nobody' has no row"


def test_a_batch_that_no_layout_keeps_is_said() -> None:
    narrow = {**GPT2_XL, "n_head": 4}  # so tp is 4 at most, and dp at least 2
    choice = filled(run_of(train={"global_batch_size": 9}), auto=EVERYTHING, config=narrow)
    assert "no layout keeps the batch" in choice.why
    assert choice.run.parallel.tp_size == 1
