"""What a run needs of disk and host memory, before it has any of it."""

import json
import shutil
from pathlib import Path

import pytest
from parity_steps import tiny_run
from tiny_models import write_tiny_model

from megatune.doctor.needs import checkpoint_bytes, host_bytes, num_params_of

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 128, "intermediate_size": 96}  # fmt: skip
NUM_PARAMS = 78_144
ADAMW = {"optimizer": "adamw", "momentum": 0.0}


@pytest.mark.parametrize(
    ("optimizer", "momentum", "bytes_a_parameter"),
    [("adamw", 0.0, 12), ("adam", 0.0, 12), ("adagrad", 0.0, 8), ("sgd", 0.0, 4), ("sgd", 0.9, 8)],
)
def test_a_checkpoint_holds_the_weights_and_the_moments_in_fp32(optimizer, momentum, bytes_a_parameter):
    run = tiny_run("model", train={"optimizer": optimizer, "momentum": momentum})
    assert checkpoint_bytes(run, 10) == 10 * bytes_a_parameter
    assert checkpoint_bytes(run, None) is None


@pytest.mark.parametrize(
    ("on_gpu", "precision", "offload", "bytes_a_parameter"),
    [
        (False, "bf16", "none", 16),
        (False, "fp32", "none", 20),
        (True, "bf16", "none", 0),
        (True, "bf16", "optimizer", 12),
        (True, "bf16", "all", 16),
        (True, "bf16", "nvme:/scratch", 0),
    ],
)
def test_host_memory_holds_all_states_of_cpus_and_what_gpus_offload(
    on_gpu, precision, offload, bytes_a_parameter
):
    run = tiny_run("model", precision=precision, parallel={"offload": offload}, train=ADAMW)
    assert host_bytes(run, 10, on_gpu=on_gpu) == 10 * bytes_a_parameter


@pytest.mark.parametrize("initialize", ["pretrained", "random"])
def test_parameters_are_counted_before_there_are_weights(tmp_path: Path, initialize: str):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    run = tiny_run(str(tmp_path), model={"initialize": initialize})
    assert num_params_of(run) == NUM_PARAMS


def test_weights_that_lie_there_in_two_formats_are_counted_once(tmp_path: Path):
    """As in Mistral's own repositories."""
    folder = write_tiny_model("llama", tmp_path)
    alone = num_params_of(tiny_run(str(folder)))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert num_params_of(tiny_run(str(folder))) == alone
    assert alone is not None and alone > 0


@pytest.mark.parametrize("config", [{**LLAMA, "model_type": "unheard_of"}, {**LLAMA, "hidden_size": "x"}])
def test_a_model_that_the_planner_does_not_know_has_no_count(tmp_path: Path, config: dict[str, object]):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert num_params_of(tiny_run(str(tmp_path))) is None
    assert num_params_of(tiny_run(str(tmp_path / "none"))) is None
