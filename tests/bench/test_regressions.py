"""A record beside an older one: when something has become slower, and when nothing can be said."""

import copy
from typing import Any

import pytest

from megatune.bench.record import read_record
from megatune.bench.regressions import Verdict, compare_records
from megatune.bench.suite import SUITES, Case, Suite, Work
from megatune.cli.bench import exit_code, refuse_incomparable
from megatune.errors import ConfigError

CPU = {"cpu": "a cpu", "cpu_cores": 2, "gpus": []}
GPU = {**CPU, "gpus": [{"name": "H200", "memory.total": "143771 MiB", "power.limit": "700.00 W"}]}
WORK = Work(model="m", precision="fp32")


def case(
    *rounds: list[float], wall_s: float = 1.0, losses: tuple[float, ...] = (2.0, 1.9), **work: Any
) -> dict[str, Any]:
    """A case `a` whose steps of ten tokens each took these processor seconds, round by round."""
    runs = [
        {
            "losses": list(losses),
            "cpu_seconds": cpu_s,
            "step_seconds": [wall_s * (1 + 0.01 * step) for step in range(len(cpu_s))],
            "tokens": [10] * len(cpu_s),
        }
        for cpu_s in rounds
    ]
    return {"name": "a", "failure": None, "work": {**WORK.model_dump(), **work}, "runs": runs}


def record(*cases: dict[str, Any], machine: dict[str, Any] = CPU) -> dict[str, Any]:
    return {"machine": machine, "cut_off": None, "cases": list(cases)}


def compared(old: dict[str, Any], new: dict[str, Any], **machines: dict[str, Any]) -> tuple[Verdict, int]:
    """The verdict on the only case, and the exit code."""
    now = record(new, machine=machines.get("now", CPU))
    (verdict,) = found = compare_records(record(old, machine=machines.get("before", CPU)), now)
    return verdict, exit_code(now, found)


def test_slower_is_what_lies_beyond_the_rounds_of_both():
    before = case([9.0, 9.0], [12.0, 12.0])
    verdict, code = compared(before, case([11.0, 11.0], [13.0, 13.0]))
    assert (verdict.kind, code) == ("not slower", 0)
    verdict, code = compared(before, case([12.5, 12.5], [13.0, 13.0]))
    assert (verdict.kind, code) == ("slower", 1)
    assert "+21.4 % processor time a token (1275 [1250 .. 1300] ms beside 1050 [900 .. 1200]" in verdict.words
    assert verdict.ratio == pytest.approx(12.75 / 10.5)


def test_one_round_is_held_to_the_scatter_of_its_steps():
    verdict, code = compared(case([1.00, 1.02, 0.99]), case([1.001, 1.021, 0.991]))
    assert (verdict.kind, code) == ("not slower", 0)
    assert "spread of steps" in verdict.words
    verdict, code = compared(case([1.00, 1.02, 0.99]), case([1.1, 1.2, 1.3]))
    assert (verdict.kind, code) == ("slower", 1)


@pytest.mark.parametrize(
    ("old", "new", "short"),
    [([1.0], [9.0], "this"), ([1.0, 1.1], [9.0], "this"), ([1.0], [9.0, 9.1], "the other")],
)
def test_one_step_of_one_round_can_show_nothing(old: list[float], new: list[float], short: str):
    verdict, code = compared(case(old), case(new))
    assert (verdict.kind, code) == ("refused", 2)
    assert verdict.words.startswith(f"{short} record has one step of one round")
    assert "--rounds 2" in verdict.words


def test_on_a_gpu_wall_time_counts():
    same = [5.0, 5.0]
    verdict, _ = compared(case(same), case(same, wall_s=1.5), before=GPU, now=GPU)
    assert verdict.kind == "slower"
    assert "time a token" in verdict.words
    assert "processor" not in verdict.words
    verdict, _ = compared(case(same), case([9.0, 9.0]), before=GPU, now=GPU)
    assert verdict.kind == "not slower"


CAPPED = {**GPU, "gpus": [{**GPU["gpus"][0], "power.limit": "350.00 W"}]}


@pytest.mark.parametrize(
    ("new", "before", "now", "words"),
    [
        (case([1.0, 1.0]), CPU, {**CPU, "cpu": "another"}, "it ran on another, 2 cores, the other on a cpu, 2 cores"),
        (case([1.0, 1.0]), CPU, GPU, "H200"),
        (case([1.0, 1.0]), CAPPED, GPU, "350.00 W"),
        (case([1.0, 1.0]), CPU, {**CPU, "cpu": None}, "the device of this record is not known"),
        (case([1.0, 1.0], model="big", precision="bf16"), CPU, CPU, "model big beside m, precision bf16 beside fp32"),
        (case([1.0, 1.0], max_seq_length=512), CPU, CPU, "max_seq_length 512 beside 256"),
        (case([1.0, 1.0], losses=(2.0, 1.95)), CPU, CPU, "other losses: step 2 has 1.95 beside 1.9"),
    ],
)  # fmt: skip
def test_another_device_other_work_and_other_losses_are_refused(
    new: dict[str, Any], before: dict[str, Any], now: dict[str, Any], words: str
):
    verdict, code = compared(case([1.0, 1.0]), new, before=before, now=now)
    assert (verdict.kind, code) == ("refused", 2)
    assert words in verdict.words
    assert verdict.ratio is None


def test_a_loss_within_the_precision_is_the_same():
    verdict, _ = compared(case([1.0, 1.0]), case([1.0, 1.0], losses=(2.0, 1.90001)))
    assert verdict.kind == "not slower"


def test_records_without_a_common_case_say_so():
    other = {**case([1.0, 1.0]), "name": "b"}
    found = compare_records(record(case([1.0, 1.0])), record(other))
    assert [(verdict.case, verdict.kind, verdict.words) for verdict in found] == [
        ("b", "left out", "not in the other record"),
        ("a", "left out", "only in the other record"),
    ]
    assert exit_code(record(other), found) == 2
    assert exit_code(record(other), None) == 0


def test_a_new_case_beside_one_that_is_compared_changes_nothing():
    both = [case([1.0, 1.0]), {**case([1.0, 1.0]), "name": "new"}]
    found = compare_records(record(both[0]), record(*both))
    assert [verdict.kind for verdict in found] == ["not slower", "left out"]
    assert exit_code(record(*both), found) == 0


def test_nothing_is_measured_when_nothing_could_be_compared():
    suite = Suite(about="x", work=WORK, cases=(Case(name="a", train=()), Case(name="b", train=())))
    before = record(case([1.0, 1.0], micro_batch=4))
    with pytest.raises(ConfigError) as error:
        refuse_incomparable(before, CPU, suite, suite.cases)
    assert "case 'a' cannot be compared: other work: micro_batch 2 beside 4" in str(error.value)
    assert "case 'b' cannot be compared: not in the other record" in str(error.value)
    refuse_incomparable(record(case([1.0, 1.0])), CPU, suite, suite.cases)  # one is left: it goes on


def test_a_large_model_of_one_processor_is_no_regression_of_a_small_one_of_another():
    small, large = (
        read_record(SUITES.parent / "results" / name)
        for name in ("peers-intel-r-xeon-r-processor.json", "peers-135m-amd-epyc.json")
    )
    found = [verdict for verdict in compare_records(small, large) if verdict.kind != "left out"]
    assert len(found) == 12
    assert all(verdict.kind == "refused" and "AMD EPYC" in verdict.words for verdict in found)


def test_a_record_beside_itself_is_not_slower():
    record = read_record(SUITES.parent / "results" / "peers-135m-amd-epyc.json")
    found = compare_records(record, copy.deepcopy(record))
    assert {verdict.kind for verdict in found} == {"not slower"}
    assert exit_code(record, found) == 0
