"""This machine as the planner sees it: the same for a start, for `megatune plan` and for a tune."""

import json
from pathlib import Path

import pytest
import yaml

from megatune.cli.plan import PlanOptions, plan_run
from megatune.config import load_run
from megatune.errors import PlanError
from megatune.launch.planned_run import machine_here
from megatune.tune.layouts.begin import TuneOptions, begin_tune, define_tune

LLAMA_17M = Path(__file__).parents[2] / "benchmarks/models/llama-17m"
MIB = 2**20


def boards(*rows: str) -> str:
    """The shell line of a driver with these boards, each `name, memory in MiB`."""
    listed = "; ".join(f"echo 'GPU {number}: {row}'" for number, row in enumerate(rows))
    asked = "; ".join(f"echo '{row}'" for row in rows)
    return f"case $1 in -L) {listed};; *) {asked};; esac"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = {
        "model": {"model_name_or_path": str(LLAMA_17M)},
        "data": {"train": "rows.jsonl", "max_seq_length": 128},
        "train": {"output_dir": str(tmp_path / "run"), "global_batch_size": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def planned_devices(run_file: Path, capsys: pytest.CaptureFixture[str], gpu: str | None = None) -> dict:
    """What `megatune plan --json` says of memory and devices, as one object."""
    plan_run(
        run_file,
        [],
        PlanOptions(nodes=None, gpus_per_node=None, gpu=gpu, layout=None, lengths=None,
                    price_per_gpu_hour=None, write=False, as_json=True),
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    return {**found["devices"], **found["memory"]}


def test_the_memory_is_the_boards_and_not_the_tables_for_all_that_plan(nvidia_smi, run_file, capsys):
    nvidia_smi(boards("NVIDIA A100-SXM4-80GB, 40000", "NVIDIA A100-SXM4-80GB, 39000"))
    machine = machine_here(load_run(run_file).run, num_nodes=1, ranks_per_node=2)
    assert machine.accelerator is not None
    assert (machine.accelerator.name, machine.device_memory_bytes) == ("a100-80gb", 39000 * MIB)

    folder, definition, loaded = define_tune(run_file, (), TuneOptions())
    assert definition.machine == machine
    assert begin_tune(folder, definition, loaded).machine == begin_tune(folder, definition, loaded).machine
    assert planned_devices(run_file, capsys)["device_limit_bytes"] == 39000 * MIB


def test_a_tune_on_boards_that_differ_guesses_none(nvidia_smi, run_file):
    nvidia_smi(boards("NVIDIA A100-SXM4-80GB, 81000", "Quadro, 8000"))
    _, definition, _ = define_tune(run_file, (), TuneOptions())
    machine = machine_here(load_run(run_file).run, num_nodes=1, ranks_per_node=2)
    assert definition.machine == machine
    assert (machine.accelerator, machine.device_memory_bytes, machine.on_cpu) == (None, None, False)


def test_a_board_that_the_table_does_not_know_is_planned_by_the_name_that_is_given(
    nvidia_smi, run_file, capsys
):
    nvidia_smi(boards("NVIDIA Engineering Sample, 50000"))
    machine = machine_here(load_run(run_file).run, num_nodes=1, ranks_per_node=1, gpu="h100-80gb")
    assert machine.accelerator is not None
    assert (machine.accelerator.name, machine.device_memory_bytes) == ("h100-80gb", 50000 * MIB)
    assert planned_devices(run_file, capsys, "h100-80gb")["device_limit_bytes"] == 50000 * MIB
    with pytest.raises(PlanError, match="h100-80gb"):
        machine_here(load_run(run_file).run, num_nodes=1, ranks_per_node=1, gpu="gtx")


def test_another_board_than_this_machines_has_the_tables_memory(nvidia_smi, run_file, capsys):
    nvidia_smi(boards("NVIDIA A100-SXM4-40GB, 40960"))
    found = planned_devices(run_file, capsys, "h100-80gb")
    assert (found["name"], found["device_limit_bytes"]) == ("h100-80gb", 80 * 2**30)


def test_this_machine_without_its_gpus_is_planned_as_cpus(nvidia_smi, run_file, capsys):
    nvidia_smi(boards("NVIDIA A100-SXM4-40GB, 40960"))
    assert planned_devices(run_file, capsys, "cpu")["name"] == "cpu"
