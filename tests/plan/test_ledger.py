"""Every choice shows in the ledger where it should, and nowhere else."""

from typing import Any

import pytest
from plan_questions import LLAMA_70B, layout, machine, question

from megatune.plan.answer import notes
from megatune.plan.assess import Question, assess
from megatune.plan.ledger import Ledger, make_ledger
from megatune.plan.links import Link, Links
from megatune.plan.question import Machine
from megatune.plan.rates import Measured
from megatune.plan.snapshot import pinned_bytes


def ledger(asked: Question | None = None, **changes: Any) -> Ledger:
    asked = asked or question()
    return make_ledger(asked.work, layout(**changes), asked.place)


def changed(before: Ledger, after: Ledger) -> set[str]:
    """Components of a device that differ, the margin on them aside."""
    names = (before.device.keys() | after.device.keys()) - {"fragmentation"}
    return {name for name in names if before.device.get(name) != after.device.get(name)}


STATES = {"weights", "gradients", "optimizer"}


def test_the_total_is_the_sum_and_states_are_eighteen_bytes_a_parameter() -> None:
    found = ledger()
    assert found.device_total == sum(found.device.values())
    share = question().work.model.num_share(1, 8)
    assert sum(found.device[name] for name in STATES) == 18 * share


def test_checkpointing_shrinks_activations_and_nothing_else() -> None:
    before, after = ledger(), ledger(gradient_checkpointing=True)
    assert changed(before, after) == {"activations"}
    assert after.device["activations"] < before.device["activations"] / 5


def test_twice_the_micro_batch_doubles_activations_and_adds_to_the_loss_only() -> None:
    before, after = ledger(), ledger(micro_batch=2, accumulation=4)
    assert changed(before, after) == {"activations", "loss"}
    assert after.device["activations"] == 2 * before.device["activations"]


def test_a_classifier_head_takes_no_room_for_a_vocabulary() -> None:
    """The embedding stays; the head, its gradient and the logits of the vocabulary are gone."""
    of_lm = question(LLAMA_70B)
    run = {"model": {"head": "classifier"}, "data": {"task": "classification", "packing": False}}
    labelled = question(LLAMA_70B, model=run["model"], data={**run["data"], "labels": ["a", "b", "c"]})
    unlabelled = question(LLAMA_70B, **run)

    model = labelled.work.model
    assert model.num_params == of_lm.work.model.num_params - (128256 - 3) * 8192
    before, after = ledger(of_lm), ledger(labelled)
    assert after.device["loss"] < before.device["loss"] / 100
    assert sum(after.device[name] for name in STATES) == 18 * model.num_share(1, 8)
    assert unlabelled.work.model.num_head_params == 2 * 8192
    told = notes(unlabelled, assess(unlabelled, layout()))
    assert any("data.labels is not given: the head is counted with 2 classes" in note for note in told)
    assert not any("data.labels" in note for note in notes(labelled, assess(labelled, layout())))


def test_offload_moves_states_to_the_host_of_the_node() -> None:
    none, optimizer, everything = (ledger(offload=name) for name in ("none", "optimizer", "all"))
    assert changed(none, optimizer) == {"gradients", "optimizer"}
    assert changed(optimizer, everything) == {"weights"}
    assert optimizer.host["offloaded_optimizer"] == 8 * none.device["optimizer"]
    assert optimizer.host["offloaded_gradients"] == 8 * none.device["gradients"]
    assert everything.host["offloaded_weights"] == 8 * none.device["weights"]
    gradients = optimizer.host["offloaded_gradients"] // 8
    rounding = 8 * (pinned_bytes(gradients) - gradients)
    assert optimizer.host["pinned_rounding"] == rounding > 0, "DeepSpeed locks the gradients in memory"
    weights = everything.host["offloaded_weights"] // 8
    assert everything.host["pinned_rounding"] == rounding + 8 * (pinned_bytes(weights) - weights)
    assert optimizer.host_peaks["start"] == optimizer.host_peaks["train"] + 8 * pinned_bytes(gradients)
    assert none.host["pinned_rounding"] == 0 and none.host_peaks["start"] == none.host_peaks["train"]
    disk = ledger(offload="nvme:/local")
    assert disk.disk_bytes == optimizer.host["offloaded_optimizer"]
    assert disk.host["offloaded_optimizer"] == 0
    assert disk.host["offloaded_gradients"] == optimizer.host["offloaded_gradients"]
    assert disk.device == optimizer.device
    group_bytes = 12 * min(100_000_000, question().work.model.num_share(1, 8))
    assert disk.host["mapped_states"] == 8 * group_bytes
    assert none.disk_bytes == optimizer.disk_bytes == 0


def test_the_only_data_parallel_rank_has_no_bucket_of_gradients() -> None:
    model = question().work.model
    alone = ledger(data_parallel=1)
    block = sum(weight.num_params for weight in model.local_block(1))
    widest = max(weight.num_params for weight in model.local_outside(1))
    reduce = max(2 * block, widest)  # the bucket of a policy that does not say
    assert alone.device["gradient_buckets"] == 2 * (widest + reduce), (
        "what is made, and what waits to be added up"
    )
    # DeepSpeed's own way: the bucket, and its copy that is being reduced.
    quantized = {"zero_optimization": {"zero_quantized_gradients": True}}
    for theirs in (
        ledger(data_parallel=1, offload="optimizer"),
        ledger(question(policy=quantized), data_parallel=1),
    ):
        assert theirs.device["gradient_buckets"] == 2 * (widest + 2 * 2 * block)


def test_tensor_parallelism_divides_activations_but_not_what_every_rank_computes() -> None:
    before, after = ledger(), ledger(tensor_parallel=5, data_parallel=8)
    ratio = after.device["activations"] / before.device["activations"]
    assert 1 / 5 < ratio < 0.6
    # The vocabulary is divided; the loss's fp32 chunks have a fixed size.
    assert after.device["loss"] < before.device["loss"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_stage_divides_one_thing_more(stage: int) -> None:
    found, model = ledger(zero_stage=stage), question().work.model
    whole, by_itself, flat = (
        model.num_params,
        model.num_share(1, 8),
        model.flat_share(1, 8, in_one_group=False),
    )
    assert 0 <= 8 * flat - whole < 32, "two groups, padded to two elements a rank"
    # Stage 1 keeps bf16 gradients beside their sums.
    expected = {
        0: (2 * whole, 4 * whole, 12 * whole),
        1: (2 * 8 * flat, 4 * 8 * flat + 2 * 8 * flat, 12 * flat),
        2: (2 * 8 * flat, 4 * flat, 12 * flat),
        3: (2 * by_itself, 4 * by_itself, 12 * by_itself),
    }
    parts = tuple(found.device[name] for name in ("weights", "gradients", "optimizer"))
    assert parts == pytest.approx(expected[stage], abs=64)


@pytest.mark.parametrize(
    ("key", "value", "component"),
    [
        ("reduce_bucket_size", 1_000_000, "gradient_buckets"),
        ("stage3_max_reuse_distance", 1_000_000, "gathered_weights"),
        ("stage3_prefetch_bucket_size", 1_000_000, "gathered_weights"),
        ("stage3_param_persistence_threshold", 0, "gathered_weights"),
    ],
)
def test_a_setting_of_the_policy_shows_in_its_component(key: str, value: int, component: str) -> None:
    policy = {"zero_optimization": {key: value}}
    before, after = ledger(), ledger(question(policy=policy))
    assert changed(before, after) == {component}
    assert after.device[component] < before.device[component]


@pytest.mark.parametrize(("key", "value"), [("sub_group_size", 10**8), ("stage3_max_live_parameters", 10**8)])
def test_settings_that_only_act_at_other_moments_can_only_help(key: str, value: int) -> None:
    policy = {"zero_optimization": {key: value}}
    before, after = ledger(question(LLAMA_70B)), ledger(question(LLAMA_70B, policy=policy))
    assert after.device_total <= before.device_total


def test_a_second_copy_of_the_weights_inside_a_node_is_counted_and_spares_the_network() -> None:
    policy = {"zero_optimization": {"zero_hpz_partition_size": 8}}
    slow = Link(latency_s=1e-5, bytes_per_s=3e9, num_points=9)
    links = Links(measured_at="", backend="nccl", num_nodes=4, intra_node=None, inter_node=slow)
    on = machine(4, "h100-80gb", measured=Measured(links=links))
    asked, near = (question(LLAMA_70B, on, policy=p) for p in (None, policy))
    choice = layout(data_parallel=32, accumulation=2)
    before, after = assess(asked, choice), assess(near, choice)
    assert changed(before.ledger, after.ledger) == {"second_weights"}
    assert after.ledger.device["second_weights"] == 2 * -(-asked.work.model.num_params // 8)
    assert before.phases and after.phases
    assert after.phases.zero_s < 0.8 * before.phases.zero_s


def test_the_step_is_the_peak_when_little_is_computed() -> None:
    found = ledger(question(LLAMA_70B, data={"max_seq_length": 8}), gradient_checkpointing=True)
    assert found.moment == "forward and backward"
    found = ledger(question(data={"max_seq_length": 8}), gradient_checkpointing=True, zero_stage=1)
    assert found.moment == "optimizer step"
    assert found.device["step_gradients"] == (4 + 2) * 500_000_000, "what is reduced at a time, and rounded"


@pytest.mark.parametrize(
    ("change", "component"),
    [
        ({"precision": "fp32"}, "weights"),
        ({"train": {"optimizer": "sgd"}}, "optimizer"),
        ({"data": {"max_seq_length": 512}}, "activations"),
        ({"data": {"packing": True}}, "activations"),
        ({"model": {"attn_implementation": "eager"}}, "activations"),
    ],
)
def test_an_entry_of_the_run_file_shows(change: dict[str, Any], component: str) -> None:
    assert component in changed(ledger(), ledger(question(**change)))


def test_random_weights_are_drawn_whole_on_every_rank_of_the_host() -> None:
    drawn = ledger(question(model={"initialize": "random"}))
    assert drawn.host["passing"] == 8 * 4 * question().work.model.num_params
    assert drawn.host_peaks["load"] == drawn.host_total, "without offload nothing else is on the host"
    assert drawn.host_peaks["train"] < drawn.host_peaks["save"] < drawn.host_peaks["load"]


def test_without_gpus_the_hosts_share_is_the_device() -> None:
    host = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=64 * 2**30)
    found = ledger(question(on=host))
    assert found.device_limit == 8 * 2**30
    assert found.host == {}
    assert "nccl" not in found.device


def test_too_little_host_memory_does_not_fit() -> None:
    short = question(on=machine(host_memory_bytes=8 * 2**30))
    assert ledger(short).fits
    assert not ledger(short, offload="all").fits


def test_kept_weights_are_whole_at_every_moment_and_only_without_offload() -> None:
    kept, sent = (ledger(question(parallel={"keep_gathered": keep})) for keep in (True, False))
    whole = 2 * question().work.model.num_local_params(1)

    assert kept.device["gathered_weights"] == whole > sent.device["gathered_weights"]
    offloaded = ledger(question(parallel={"keep_gathered": "auto"}), offload="optimizer")
    assert offloaded.device["gathered_weights"] < whole


def test_whole_logits_need_more_than_chunks_of_them() -> None:
    chunked, whole = (ledger(question(train={"chunked_loss": asked})) for asked in (True, False))

    assert changed(chunked, whole) == {"loss"}
    assert chunked.device["loss"] > 4 * 50257 * 1600, "the gradient of the head"
    more_tokens = (ledger(question(train={"chunked_loss": asked}), micro_batch=16) for asked in (True, False))
    in_chunks, at_once = (found.device["loss"] for found in more_tokens)
    assert in_chunks < at_once / 4


SAVES = {"save_steps": 10}


def test_a_snapshot_of_saves_behind_training_is_on_the_host_while_training_and_pinned() -> None:
    without = ledger(question(checkpoint={"async": False, **SAVES}))
    behind = ledger(question(checkpoint={"async": True, **SAVES}))
    offloaded = ledger(question(checkpoint={"async": True, **SAVES}), offload="optimizer")

    own = 12 * question().work.model.num_share(1, 8)
    assert behind.host["snapshot"] == 8 * pinned_bytes(own)
    assert behind.host_total == max(behind.host_peaks.values()) == behind.host_peaks["save"]
    assert offloaded.host["snapshot"] == 8 * own, "a state on the host is copied to plain memory"
    assert changed(without, behind) == set()
    assert behind.host_peaks["load"] == without.host_peaks["load"]
    assert behind.host_peaks["train"] == without.host_peaks["train"] + behind.host["snapshot"]
    assert "snapshot" not in ledger(question(checkpoint={"async": True})).host, "nothing is saved on the way"


def test_what_is_there_at_different_times_need_not_fit_together() -> None:
    """The second copy of the gradients is gone before the first snapshot is made."""
    saves = {"async": True, **SAVES}
    found = ledger(question(checkpoint=saves), offload="optimizer")
    needs = found.host_peaks
    copies = needs["start"] - (needs["train"] - found.host["snapshot"])
    room = max(needs.values())
    assert needs["save"] + copies > room
    enough, short = (
        ledger(question(on=machine(host_memory_bytes=size), checkpoint=saves), offload="optimizer")
        for size in (room, room - 1)
    )

    assert enough.fits and enough.host_total == room
    assert not short.fits and short.host_missing_bytes == 1


def test_auto_takes_half_of_the_host_memory_that_is_left_and_where_nobody_knows_it_the_run_decides() -> None:
    def asked(gib: int | None) -> Ledger:
        room = None if gib is None else gib * 2**30
        return ledger(question(on=machine(host_memory_bytes=room), checkpoint=SAVES))

    others, takes = asked(None).host_peaks["save"], asked(None).snapshot_bytes
    enough = -(-(others + 2 * takes) // 2**30)
    assert asked(enough).saves_behind is True
    assert asked(enough - 1).saves_behind is False
    assert asked(None).saves_behind is None
    assert asked(enough - 1).host_peaks == asked(None).host_peaks
    assert asked(enough - 1).fits, "auto refuses no layout"


def test_without_gpus_a_snapshot_takes_of_the_ranks_own_share() -> None:
    def asked(mode: bool | str) -> Ledger:
        host = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=512 * 2**30)
        return ledger(question(on=host, checkpoint={"async": mode, **SAVES}))

    assert changed(asked(False), asked("auto")) == {"snapshot"}
    assert asked(True).device["snapshot"] == 12 * question().work.model.num_share(1, 8)


def test_gradients_of_stage_0_come_as_activations_go() -> None:
    whole = 2 * question().work.model.num_params
    kept, recomputed = (
        ledger(zero_stage=0, gradient_checkpointing=on, micro_batch=2, accumulation=4) for on in (False, True)
    )
    block = sum(weight.num_params for weight in question().work.model.block)

    assert kept.device["gradient_buckets"] == 2 * block, (
        "activations of all blocks are more than all gradients"
    )
    assert 2 * block < recomputed.device["gradient_buckets"] < whole
    host = Machine(nodes=1, ranks_per_node=8, accelerator=None, host_memory_bytes=512 * 2**30)
    once, twice = (ledger(question(on=host), zero_stage=0, accumulation=count) for count in (1, 2))
    assert once.device["gradient_buckets"] < twice.device["gradient_buckets"] == whole, "of a heap that stays"
