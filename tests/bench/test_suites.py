"""Suite files: the ones of the checkout are whole, and a wrong one is refused with all that is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from megatune.bench.inputs import MODELS, texts
from megatune.bench.measure import PEERS
from megatune.bench.record import read_record
from megatune.bench.rounds import run_rounds
from megatune.bench.suite import LARGEST, SUITES, Case, Suite, Work, load_suite
from megatune.cli.bench import BenchOptions, bench_suite, chosen, hand_in_suite
from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.report.losses import first_difference

PROGRAM = ("startup.py", "--help")
NAMES = sorted(path.stem for path in SUITES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_of_a_suite_can_be_run(name: str, tmp_path: Path):
    suite = load_suite(name)
    peers = (PEERS / "engines.py").read_text() + '"trainer-zero3"'
    for case in suite.expanded():
        if case.program is not None:
            assert (SUITES.parent / case.program[0]).is_file()
            continue
        work = suite.work_of(case)
        assert work.model == LARGEST or (MODELS / work.model / "config.json").is_file()
        if case.peer is not None:
            assert f'"{case.peer}"' in peers
        else:
            run = tmp_path / "run.yaml"
            run.write_text(yaml.safe_dump({"model": {"model_name_or_path": "m"}, "data": {"train": "t.jsonl"},
                                           "train": {"output_dir": str(tmp_path / "out")}}))  # fmt: skip
            load_run(run, list(case.train or ()))


@pytest.mark.parametrize(
    ("num_devices", "ranks"), [(2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])]
)
def test_scaling_goes_up_to_the_devices(num_devices: int, ranks: list[int]):
    suite = load_suite("scaling")
    cases = {case.name: suite.work_of(case) for case in suite.expanded(num_devices)}
    words = [f"{count} rank{'s' * (count > 1)}" for count in ranks]
    assert list(cases) == [f"{kind}, {count}" for kind in ("strong", "weak") for count in words]
    assert {work.ranks * work.micro_batch for name, work in cases.items() if "strong" in name} == {8}
    assert {work.micro_batch for name, work in cases.items() if "weak" in name} == {2}
    assert {work.ranks for work in cases.values()} == set(ranks)
    assert load_suite("scaling").expanded(16)[-1].name == "weak, 16 ranks", "8 rows do not go to 16 ranks"


def test_collectives_begin_with_two_ranks():
    suite = load_suite("communication")
    assert [case.program for case in suite.expanded(4)] == [
        ("communication.py", "2", "5"),
        ("communication.py", "4", "5"),
    ]
    assert suite.expanded(1) == ()


def test_layouts_has_every_stage_and_what_tensor_parallelism_goes_with():
    asked = [set(case.train or ()) for case in load_suite("layouts").cases]
    for overrides in (
        *({f"parallel.zero_stage={stage}"} for stage in range(3)),
        {"parallel.offload=all"},
        {"parallel.tp_size=2", "model.gradient_checkpointing=true"},
        {"parallel.tp_size=2", "parallel.offload=optimizer"},
        set(),
    ):
        assert overrides in asked


@pytest.mark.parametrize("name", ["peers-intel-r-xeon-r-processor.json", "peers-135m-amd-epyc.json"])
def test_all_that_communicate_take_the_same_steps_and_the_floor_does_not(name: str):
    record = read_record(SUITES.parent / "results" / name)
    suite = load_suite(record["suite"])
    losses = {case["name"]: case["runs"][0]["losses"] for case in record["cases"] if case.get("runs")}
    apart, measured = set(), set()
    for case in suite.expanded():
        group = f" ({case.group})"
        precision = suite.work_of(case).precision
        theirs, ours = losses.get(f"{suite.losses_of}{group}"), losses.get(case.name + group)
        if theirs is None or ours is None:  # `make bench` leaves out what its time is too short for
            continue
        measured.add((case.name, precision))
        if first_difference(theirs, ours, precision) is not None:
            apart.add((case.name, precision))
    assert len(measured) > 2, "the record shows nothing"
    assert apart == {("floor", "fp32")} & measured, (
        "in bf16 the tolerance is wider than what the exchange of gradients changes"
    )
    assert {case.name for case in suite.cases if case.same_loss != "all"} == {"floor"}


def test_a_matrix_gives_every_combination_a_group_of_its_own(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "about: x\nwork: {model: llama-17m}\nmatrix: {precision: [fp32, bf16], ranks: [1, 2]}\n"
        "cases: [{name: a, train: []}]\n"
    )
    suite = load_suite(str(path))
    cases = suite.expanded()
    assert len({case.group for case in cases}) == 4
    assert {(suite.work_of(case).precision, suite.work_of(case).ranks) for case in cases} == {
        ("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("about: [", ["is not YAML"]),
        ("hello", ["s.yaml: it holds 'hello'; a suite is a mapping with the keys about, work"]),
        ("", ["s.yaml: it is empty; a suite is a mapping"]),
        ("cases: []", ["about"]),
        ("about: x\ncases: [{name: a}, {name: a, train: [], peer: ddp}]",
         ["case 'a' must have one of", "two cases are called 'a'"]),
        ("about: x\nbaseline: b\ncases: [{name: a, train: []}]", ["baseline = 'b' is none of the cases"]),
        ("about: x\nbaseline: 'a, {ranks}'\nlosses_of: 'a, 3 ranks'\n"
         "cases: [{name: 'a, {ranks}', train: [], ranks: up-to-devices}]",
         ["baseline = 'a, {ranks}' is none of the cases: 'a, 1 rank'", "losses_of = 'a, 3 ranks'"]),
        ("about: x\ncases: [{name: a, train: [], ranks: up-to-devices}, {name: b, train: [], rows_a_step: 4}]",
         ["case 'a' has `ranks`: its name must hold {ranks}", "case 'b' has rows_a_step, which belongs to `ranks`"]),
        ("about: x\nwork: {model: largest-that-fits, initialize: random}\ncases: [{name: a, peer: ddp}]",
         ["leave out work.initialize", "work.model = largest-that-fits is for `train`"]),
        ("about: x\nwork: {model: m}\nmatrix: {model: [m, largest-that-fits], initialize: [random, pretrained]}\n"
         "cases: [{name: a, peer: ddp}]",
         ["s.yaml has 2 problems", "leave out work.initialize", "work.model = largest-that-fits is for `train`"]),
        ("about: x\nrounds: 0\nwork: {model: m, spead: 3}\ncases: []", ["rounds", "work.spead"]),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_refused_with_all_that_is_wrong(tmp_path: Path, text: str, told: list[str]):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_suite(str(path))
    for words in told:
        assert words in str(error.value)


def test_a_baseline_may_be_a_case_at_one_number_of_ranks_of_a_larger_machine(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "about: x\nbaseline: a, 64 ranks\ncases: [{name: 'a, {ranks}', train: [], ranks: up-to-devices}]\n"
    )
    assert "a, 64 ranks" in {case.name for case in load_suite(str(path)).expanded(64)}


def test_an_unknown_suite_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"^megatune bench: there is no suite 'pears' .*peers"):
        load_suite("pears")


def test_patterns_that_match_no_case_are_answered_with_the_cases():
    with pytest.raises(ConfigError, match=r"^megatune bench: --only zzz matches no case .*'megatune tp=2'"):
        chosen(load_suite("smoke"), ("zzz",))


def test_a_model_that_is_not_there_is_told_before_any_case_runs(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "about: x\ncases: [{name: a, program: [startup.py]}, {name: b, train: [], work: {model: llama-9z}}]\n"
    )
    with pytest.raises(ConfigError, match=r"work.model = llama-9z: no folder with a config.json.*llama-17m"):
        bench_suite(str(path), BenchOptions(results=tmp_path / "results"))


def test_models_that_are_not_there_are_told_before_a_job_is_queued(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "about: x\nwork: {model: m}\nmatrix: {model: [llama-9z, largest-that-fits, llama-8z], ranks: [1, 2]}\n"
        "cases: [{name: a, train: []}]\n"
    )
    with pytest.raises(ConfigError) as error:
        hand_in_suite(str(path), BenchOptions(slurm=tmp_path / "run.yaml"))
    largest, *missing = error.value.problems
    assert "largest-that-fits is chosen on one machine" in largest
    assert [problem.partition(":")[0] for problem in missing] == [
        "work.model = llama-9z",
        "work.model = llama-8z",
    ]


def test_what_is_worked_out_on_one_machine_is_not_handed_to_slurm(tmp_path: Path):
    options = BenchOptions(slurm=tmp_path / "run.yaml")
    with pytest.raises(
        ConfigError, match=r"(?s)--slurm.*'strong, \{ranks\}' counts the devices of one machine"
    ) as error:
        hand_in_suite("scaling", options)
    assert len(error.value.problems) == 2
    with pytest.raises(ConfigError, match="largest-that-fits is chosen on one machine: name a model"):
        hand_in_suite("largest", options)


def test_cases_that_are_left_out_do_not_keep_the_others_from_slurm(tmp_path: Path):
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "about: x\nwork: {model: llama-1m}\n"
        "cases: [{name: 'over {ranks}', train: [], ranks: up-to-devices}, {name: plain, train: []}]\n"
    )
    run_file = tmp_path / "run.yaml"  # refused after the suite was taken
    with pytest.raises(ConfigError, match=r"'over \{ranks\}' counts.*with --only"):
        hand_in_suite(str(path), BenchOptions(slurm=run_file))
    with pytest.raises(ConfigError, match=r"run\.yaml") as error:
        hand_in_suite(str(path), BenchOptions(slurm=run_file, only=("plain",)))
    assert "counts the devices" not in str(error.value)


def test_made_up_rows_are_the_same_each_time_and_as_long_as_asked():
    full = Work(model="llama-17m", max_seq_length=64, steps=2)
    mixed = Work(model="llama-17m", max_seq_length=64, rows="mixed", steps=2)
    assert list(texts(full, 100)) == list(texts(full, 100))
    assert {len(text.split()) for text in texts(full, 100)} == {63}
    lengths = [len(text.split()) + 1 for text in texts(mixed, 100)]
    assert max(lengths) <= 64
    assert len(set(lengths)) > 10


def test_a_suite_begins_no_case_for_which_no_time_is_left():
    suite = Suite(
        about="two programs", cases=(Case(name="one", program=PROGRAM), Case(name="two", program=PROGRAM))
    )
    told: list[str] = []

    results = run_rounds(suite, suite.cases, rounds=2, timeout_s=60, note=told.append, budget_s=1e-6)

    assert [result.failure for result in results] == ["not run: the time was up"] * 2
    assert all("the time is up" in words for words in told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would train on it")
def test_the_gpu_script_says_what_is_missing_on_a_machine_without_one(tmp_path: Path):
    done = subprocess.run(
        [str(SUITES.parent / "gpu.sh"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert not any(tmp_path.iterdir())


# What the script asks of torch, where that sees a GPU.
TORCH = """
from types import SimpleNamespace
__version__ = "2.13.0+cu130"
cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would train on it")
def test_the_gpu_script_trains_on_no_cpu_where_megatune_does_not_find_the_gpu(tmp_path: Path):
    (tmp_path / "torch.py").write_text(TORCH)
    done = subprocess.run(
        [str(SUITES.parent / "gpu.sh"), str(tmp_path / "results")],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "torch sees 1 GPU(s) and megatune none" in done.stderr
    assert not (tmp_path / "results").exists()


def test_the_gpu_script_leaves_two_cases_of_the_layouts_out():
    patterns = re.findall(r"--only '([^']*)'", (SUITES.parent / "gpu.sh").read_text())

    names = {case.name for case in chosen(load_suite("gpu-layouts"), tuple(patterns))}

    assert names == {"as planned", "whole logits", "stage 0", "stage 2"}
