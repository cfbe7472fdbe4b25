"""What the planner fills in for `auto`."""

from plan_questions import GPT2_XL, machine, run_of

from megatune.plan.auto import fill_auto
from megatune.plan.question import Machine


def test_auto_checkpointing_is_on_only_where_it_is_needed() -> None:
    roomy, off = fill_auto(run_of(), GPT2_XL, machine())
    tight, on = fill_auto(run_of(train={"per_device_train_batch_size": 8}), GPT2_XL, machine())
    assert roomy.model.gradient_checkpointing is False
    assert tight.model.gradient_checkpointing is True
    assert "of 40.00 GiB, without it" in str(off)
    assert str(on).startswith("gradient checkpointing: on (the plan needs")


def test_what_the_run_file_says_itself_stays() -> None:
    run = run_of(model={"gradient_checkpointing": True})
    assert fill_auto(run, GPT2_XL, machine()) == (run, None)


def test_where_nothing_fits_it_is_tried_with_checkpointing() -> None:
    run, choice = fill_auto(
        run_of(train={"per_device_train_batch_size": 8}), GPT2_XL, machine(device_memory_bytes=2**30)
    )
    assert run.model.gradient_checkpointing is True
    assert "too much as well: it is tried" in str(choice)


def test_without_gpus_the_host_is_the_limit_and_unknown_memory_is_said() -> None:
    cpu = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=8 * 40 * 2**30)
    small = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=8 * 10 * 2**30)
    nobody = Machine(nodes=1, ranks_per_node=8, accelerator=None, on_cpu=False, needs_limit=False)
    assert fill_auto(run_of(), GPT2_XL, cpu)[0].model.gradient_checkpointing is False
    assert fill_auto(run_of(), GPT2_XL, small)[0].model.gradient_checkpointing is True
    run, choice = fill_auto(run_of(), GPT2_XL, nobody)
    assert run.model.gradient_checkpointing is False
    assert "not known" in str(choice)


def test_a_model_that_cannot_be_planned_trains_without_and_says_why() -> None:
    run, choice = fill_auto(run_of(), {**GPT2_XL, "model_type": "nobody"}, machine())
    assert run.model.gradient_checkpointing is False
    assert choice is not None and "not planned" in choice.why and "nobody" in choice.why
