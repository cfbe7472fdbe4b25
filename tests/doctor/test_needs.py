"""What a run needs of disk and host memory, before it has any of it."""

import pytest
from parity_steps import tiny_run

from megatune.doctor.needs import checkpoint_bytes, host_bytes

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
