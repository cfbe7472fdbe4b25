"""`megatune train` goes on with what Hugging Face's Trainer saved."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from tiny_runs import metrics_of, train, train_failing, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.checkpoint.whole import WholeTensors
from megatune.cli.convert import convert_checkpoint

pytestmark = pytest.mark.world


@pytest.fixture(scope="module")
def saved(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint-2` of the Trainer on two ranks."""
    model = write_model_with_tokenizer(session_folder)
    out = tmp_path_factory.mktemp("trainer")
    script = Path(__file__).with_name("trainer_script.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*torchrun, str(script), str(model), str(out)],
        check=True,
        capture_output=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )
    return out / "checkpoint-2"


def test_a_run_goes_on_with_the_trainers_weights_after_its_step(
    worlds: Worlds, saved: Path, tmp_path: Path, session_folder: Path
) -> None:
    run = tmp_path / "run"
    convert_checkpoint(saved, run, to="megatune", model=None, thaw=False)
    whole = WholeTensors(run / "checkpoints" / "step-00000002")
    for name, tensor in get_fp32_state_dict_from_zero_checkpoint(str(saved)).items():
        if name in whole.shapes:
            np.testing.assert_array_equal(whole.read("weight", name).numpy(), tensor.detach().numpy())
    model = write_model_with_tokenizer(session_folder)
    run_file = str(write_run(tmp_path / "run.yaml", model, train={"max_steps": 4, "output_dir": str(run)}))

    refused = worlds.run(2, train_failing, run_file, [])[0]
    codes = worlds.run(2, train, run_file, ["checkpoint.allow_change=true"])

    assert "prepared data: saved n/a" in refused
    assert "--allow-change" in refused
    assert "parameters:" not in refused
    assert codes == [0, 0]
    assert [record["step"] for record in metrics_of(run, "resume")] == [2]
    assert [record["step"] for record in metrics_of(run, "step")] == [3, 4]
