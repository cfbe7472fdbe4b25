"""The largest model that fits is the largest that the planner says fits, and it trains."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import TINY

from megatune.bench.inputs import MODELS
from megatune.bench.largest import choose_largest
from megatune.bench.record import engine_of, record_of
from megatune.bench.rounds import run_rounds
from megatune.bench.suite import LARGEST, Case, Suite, Work
from megatune.config import Run
from megatune.errors import LaunchError
from megatune.launch.planned_run import machine_here
from megatune.plan.hardware import accelerator_named
from megatune.plan.question import Machine

WORK = Work(model=LARGEST, initialize="random", max_seq_length=2048, micro_batch=1, ranks=1)
CHECKPOINTING = "model.gradient_checkpointing=true"
GIB = 2**30


def gpu(memory_gib: float, host_gib: float):
    """A machine with one GPU of so much memory."""

    def machine_of(_: Run, ranks: int) -> Machine:
        return Machine(
            nodes=1,
            ranks_per_node=ranks,
            accelerator=accelerator_named("h200-141gb"),
            device_memory_bytes=int(memory_gib * GIB),
            host_memory_bytes=int(host_gib * GIB),
        )

    return machine_of


@pytest.mark.parametrize(
    ("memory_gib", "host_gib", "offload", "model"),
    [
        (140, 500, "none", "llama-7b"),
        (80, 500, "none", "llama-3b"),
        (24, 500, "none", "llama-1b"),
        (80, 500, "optimizer", "llama-13b"),
        (80, 1000, "all", "llama-33b"),
        (80, 24, "all", "llama-1b"),  # the host has too little for more
        (6, 24, "none", "smollm2-135m"),
    ],
)
def test_less_memory_takes_a_smaller_model_and_offload_a_larger_one(
    tmp_path: Path, memory_gib: int, host_gib: int, offload: str, model: str
):
    overrides = [CHECKPOINTING, f"parallel.offload={offload}"]
    chosen = choose_largest(WORK, overrides, tmp_path, machine_of=gpu(memory_gib, host_gib))
    assert chosen.work == WORK.model_copy(update={"model": model})
    assert chosen.planned_peak_bytes <= memory_gib * GIB


def test_nothing_is_taken_where_nothing_fits_or_nobody_knows_the_memory(tmp_path: Path):
    with pytest.raises(LaunchError, match=r"none of .*models fits; llama-1m needs .* a device"):
        choose_largest(WORK, [CHECKPOINTING], tmp_path, machine_of=gpu(0.5, 24))

    def unknown(_: Run, ranks: int) -> Machine:
        return Machine(nodes=1, ranks_per_node=ranks, accelerator=None, on_cpu=False, needs_limit=False)

    with pytest.raises(LaunchError, match="how much memory this device has is not known"):
        choose_largest(WORK, [CHECKPOINTING], tmp_path, machine_of=unknown)
    (tmp_path / "none").mkdir()
    with pytest.raises(LaunchError, match="it is empty"):
        choose_largest(WORK, [], tmp_path, models=tmp_path / "none", machine_of=gpu(80, 500))


def test_a_folder_of_models_is_the_table(tmp_path: Path):
    model_type, config = TINY["llama"]
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text(json.dumps({"model_type": model_type, **config}))
    chosen = choose_largest(WORK, [], tmp_path, models=tmp_path / "models", machine_of=gpu(80, 500))
    assert chosen.work.model == "tiny"
    assert len(list(MODELS.iterdir())) > 5


def test_a_model_that_a_start_would_refuse_in_this_layout_is_not_taken(tmp_path: Path):
    model_type, config = TINY["llama"]
    shapes = {"small": (model_type, 64), "large": ("cohere", 128)}
    for name, (kind, hidden_size) in shapes.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        shape = {**config, "model_type": kind, "hidden_size": hidden_size, "use_qk_norm": True}
        (tmp_path / "models" / name / "config.json").write_text(json.dumps(shape))
    work = WORK.model_copy(update={"ranks": 2})

    def taken(tensor_parallel: int) -> str:
        overrides = [f"parallel.tp_size={tensor_parallel}"]
        models = tmp_path / "models"
        return choose_largest(work, overrides, tmp_path, models=models, machine_of=gpu(80, 500)).work.model

    assert taken(1) == "large"
    assert taken(2) == "small", "a Cohere model with norms for each head cannot be cut"
    shutil.rmtree(tmp_path / "models/small")
    with pytest.raises(LaunchError, match=r"large is refused: .*use_qk_norm"):
        taken(2)


@pytest.mark.parametrize("override", ["parallel.zero_stag=1", "parallel.offload=moon", "deepspeed=none.json"])
def test_a_layout_that_cannot_be_asked_for_fails_its_case_alone(tmp_path: Path, override: str):
    program = tmp_path / "quick.py"
    program.write_text("print('{}')")
    suite = Suite(
        about="x",
        work=WORK,
        cases=(
            Case(name="wrong", train=(override,)),
            Case(name="quick", program=(str(program),)),
        ),
    )
    wrong, quick = run_rounds(suite, suite.cases, rounds=2, timeout_s=60, note=lambda _: None)
    assert override.partition("=")[0].rpartition(".")[2] in str(wrong.failure)
    assert (quick.failure, quick.programs) == (None, [[{}], [{}]])


@pytest.mark.world
@pytest.mark.timeout(300)
def test_what_was_chosen_trains_and_says_its_size():
    """On a CPU whose rank may use what the 1 M model needs, and not what that of 17 M does."""

    def small(run: Run, ranks: int) -> Machine:
        machine = machine_here(run, num_nodes=1, ranks_per_node=ranks)
        return Machine(
            nodes=1, ranks_per_node=ranks, accelerator=None, on_cpu=True, device_memory_bytes=600 * 2**20,
            host_memory_bytes=machine.host_memory_bytes,
        )  # fmt: skip

    work = {"max_seq_length": 64, "warmup_steps": 1, "steps": 2, "precision": "bf16"}
    suite = Suite(
        about="x",
        work=WORK.model_copy(update=work),
        cases=(Case(name="a", train=(CHECKPOINTING,)),),
    )
    (result,) = run_rounds(suite, suite.cases, rounds=2, timeout_s=120, note=lambda _: None, machine_of=small)
    assert result.failure is None
    assert result.work is not None
    assert result.work.model == "llama-1m"
    assert [len(one.losses) for one in result.measurements] == [3, 3]
    measured = {"machine": {"gpus": [], "cpu": "x", "cpu_cores": 2}}
    (case,) = record_of("s", suite, [result], 2, measured)["cases"]
    assert case["work"]["model"] == "llama-1m"
    assert case["largest"]["num_params"] == pytest.approx(1e6, rel=0.5)
    assert engine_of(case).startswith("llama-1m, 1")
