"""What may be compared with what inside one record."""

import pytest

from megatune.bench.compare import Ratio, Spread, ratio_to
from megatune.bench.measure import Measurement
from megatune.bench.record import record_of, what_ran
from megatune.bench.rounds import Result, one_machine
from megatune.bench.suite import Case, Suite, Work
from megatune.errors import LaunchError
from megatune.launch.slurm.places import Here

WORK = Work(model="m", precision="fp32")


def result(
    *, losses: list[float | None], cpu_s: float = 1.0, rounds: int = 2, same_loss: str = "all"
) -> Result:
    case = Case.model_validate({"name": "x", "train": [], "same_loss": same_loss})
    measurement = Measurement(
        engine="e", losses=losses, step_seconds=[2.0], cpu_seconds=[cpu_s], tokens=[10], peak_rss_bytes=8
    )
    return Result(case, WORK, measurements=[measurement] * rounds)


def test_a_ratio_is_taken_round_by_round():
    ratio = ratio_to(result(losses=[2.0]), result(losses=[2.0], cpu_s=0.5))
    assert isinstance(ratio, Ratio)
    assert ratio.cpu_seconds_per_token == Spread(median=0.5, low=0.5, high=0.5)
    assert ratio.tokens_per_second.median == 1.0
    assert ratio.peak_memory == 1.0


@pytest.mark.parametrize("loss", [2.1, None])
def test_programs_with_other_losses_are_not_compared(loss: float | None):
    ratio = ratio_to(result(losses=[2.0, 2.0]), result(losses=[2.0, loss]))
    assert isinstance(ratio, str)
    assert "step 2" in ratio


def test_a_floor_without_communication_is_held_to_the_first_step_only():
    other = result(losses=[2.0, 2.1], same_loss="first")
    assert isinstance(ratio_to(result(losses=[2.0, 2.0]), other), Ratio)
    assert isinstance(ratio_to(result(losses=[2.2, 2.0]), other), str)


def test_later_losses_are_those_of_a_case_that_communicates_where_the_baseline_does_not():
    floor, ddp = result(losses=[2.0, 2.1], same_loss="first"), result(losses=[2.0, 1.9])
    assert isinstance(ratio_to(floor, result(losses=[2.0, 1.9]), ddp), Ratio)
    other_updates = ratio_to(floor, result(losses=[2.0, 1.95]), ddp)
    assert other_updates == "not compared: the loss of step 2 is 1.95 beside 1.9 of x"
    assert isinstance(ratio_to(floor, result(losses=[2.0, 1.95])), Ratio)


@pytest.mark.parametrize(
    ("ddp_rounds", "told"),
    [
        (0, "losses held to the first step of floor alone in 2 of 2 rounds: ddp was not run there"),
        (1, "losses held to the first step of floor alone in 1 of 2 rounds: ddp was not run there"),
        (2, None),
    ],
)
def test_what_was_held_to_the_floor_alone_says_so_in_the_record_and_the_table(
    ddp_rounds: int, told: str | None
):
    floor, ours = result(losses=[2.0, 2.1], same_loss="first"), result(losses=[2.0, 1.9])
    ddp = result(losses=[2.0, 1.9], rounds=ddp_rounds)
    for name, one in (("floor", floor), ("ddp", ddp), ("ours", ours)):
        one.case = one.case.model_copy(update={"name": name})
    suite = Suite(about="x", baseline="floor", losses_of="ddp", cases=(floor.case, ddp.case, ours.case))
    ddp.failure = None if ddp_rounds == 2 else "it failed"
    measured = {"machine": {"gpus": [], "cpu": "x", "cpu_cores": 2}}
    *_, case = record_of("s", suite, [floor, ddp, ours], 2, measured)["cases"]
    assert case["to_baseline"]["losses"] == told
    assert what_ran(case) == (f"e; {told}" if told else "e")
    *_, alone = record_of("s", suite, [floor, ours], 2, measured)["cases"]
    assert "in 2 of 2 rounds" in alone["to_baseline"]["losses"], "left out by --only"
    (lonely,) = record_of("s", suite, [ours], 2, measured)["cases"]
    assert lonely["to_baseline"] == "no floor was run beside it"


def test_a_case_that_did_not_run_has_no_ratio():
    assert ratio_to(result(losses=[2.0]), result(losses=[2.0], rounds=0)) == "one of them did not run"


def test_a_spread_shows_numbers_as_people_write_them() -> None:
    assert str(Spread(median=1234.4, low=0.7434, high=12.346)) == "1234 [0.743 .. 12.3]"


def test_a_case_of_several_nodes_is_not_timed_on_one_machine():
    assert isinstance(one_machine(WORK), Here)
    assert isinstance(one_machine(WORK.model_copy(update={"nodes": 1})), Here)
    with pytest.raises(LaunchError, match=r"needs 8 nodes: hand the suite in with --slurm"):
        one_machine(WORK.model_copy(update={"nodes": 8}))
