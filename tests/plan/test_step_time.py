"""What settings of the run file do to the time of a planned step."""

import pytest
from plan_questions import layout, question

from megatune.plan.answer import notes
from megatune.plan.assess import assess


def test_compiled_blocks_shorten_a_step_where_memory_is_waited_for() -> None:
    eager, compiled = (assess(question(model={"compile": on}), layout()).phases for on in (False, True))

    assert eager is not None and compiled is not None
    assert compiled.forward_s < eager.forward_s
    assert (compiled.zero_s, compiled.optimizer_s) == (eager.zero_s, eager.optimizer_s)


def test_a_disk_of_unknown_speed_gives_no_times() -> None:
    asked = question(parallel={"offload": "nvme:/local"})
    on_disk = assess(asked, layout(offload="nvme:/local"))

    assert on_disk.step_s is None
    told = " ".join(notes(asked, on_disk))
    assert "give parallel.disk_gb_per_s" in told
    assert "on the local disk of each node: nvme:/local" in told
    assert assess(asked, layout()).step_s is not None


def test_a_step_waits_for_the_disk_where_it_is_slower_than_the_optimizer() -> None:
    in_memory = assess(question(), layout(offload="optimizer")).step_s
    assert in_memory is not None
    steps = []
    for speed in (1e6, 6.0, 3.0):
        asked = question(parallel={"offload": "nvme:/local", "disk_gb_per_s": speed})
        steps.append(assess(asked, layout(offload="nvme:/local")).phases)

    fast, usual, slow = steps
    assert fast is not None and usual is not None and slow is not None
    assert fast.total_s == pytest.approx(in_memory)
    share = question().work.model.num_share(1, 8)
    at_3_gb_s = 2 * 12 * 8 * share / 3e9
    assert slow.offload_s - fast.offload_s == pytest.approx(at_3_gb_s - fast.optimizer_s)
    assert fast.offload_s < usual.offload_s < slow.offload_s
