"""What DeepSpeed saved, megatune goes on with; what megatune saved, DeepSpeed goes on with."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed_cases
import numpy as np
import pytest
from deepspeed_cases import State
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.checkpoint.manifest import why_incomplete
from megatune.checkpoint.whole import WholeTensors
from megatune.cli.convert import convert_checkpoint

pytestmark = pytest.mark.world

MODELS = ["gpt2", "llama-tied-9-heads"]
SMALL_GROUPS = {"zero_optimization": {"sub_group_size": 9000, "stage3_param_persistence_threshold": 0}}


@dataclass(frozen=True)
class Bare:
    """A run of DeepSpeed alone that saved after two steps."""

    model: Path
    saved: Path
    """Where `latest` stands."""
    state: State
    losses: list[float]
    """Of the two steps after the save."""


def train(worlds: Worlds, num_ranks: int, model: Path, saved: Path, **options: Any) -> Bare:
    first = worlds.run(num_ranks, deepspeed_cases.train_bare, str(model), str(saved), *options.values())[0]
    return Bare(model, saved, *first)


@pytest.fixture(scope="module", params=MODELS)
def bare(
    request: pytest.FixtureRequest,
    worlds: Worlds,
    session_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bare:
    """Two ranks; parameters of odd sizes, in several sub-groups."""
    model = write_tiny_model(request.param, session_folder)
    return train(
        worlds, 2, model, tmp_path_factory.mktemp(request.param) / "ck", frozen=None, changes=SMALL_GROUPS
    )


def convert(source: Path, target: Path, model: Path | None = None, *, thaw: bool = False) -> Path:
    convert_checkpoint(source, target, to="megatune", model=model, thaw=thaw)
    (folder,) = (target / "checkpoints").iterdir()
    assert why_incomplete(folder) is None
    return folder


def assert_holds(checkpoint: Path, state: State) -> None:
    whole = WholeTensors(checkpoint)
    assert list(whole.kinds) == list(state)
    assert set(whole.shapes) == set(state["weight"])
    for kind, tensors in state.items():
        for name, expected in tensors.items():
            np.testing.assert_array_equal(whole.read(kind, name).numpy(), expected, err_msg=f"{kind}/{name}")


def make_universal(saved: Path) -> Path:
    """DeepSpeed's own converter."""
    target = saved / "global_step2_universal"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    options = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run(
        [*command, "--input_folder", str(saved / "global_step2"), "--output_folder", str(target), *options],
        check=True,
        capture_output=True,
    )
    return target


def test_a_zero_3_checkpoint_comes_over_bit_for_bit_and_trains_on(
    worlds: Worlds, bare: Bare, tmp_path: Path
) -> None:
    converted = convert(bare.saved, tmp_path / "run", bare.model)

    assert converted.name == "step-00000002"
    assert_holds(converted, bare.state)
    for num_ranks, tp in ((2, 1), (1, 1), (2, 2)):
        losses = worlds.run(num_ranks, deepspeed_cases.go_on, str(bare.model), tp, str(converted))[0]
        np.testing.assert_allclose(losses, bare.losses, rtol=1e-6)


def test_a_universal_checkpoint_comes_over_bit_for_bit(bare: Bare, tmp_path: Path) -> None:
    converted = convert(make_universal(bare.saved), tmp_path / "run", bare.model)

    assert_holds(converted, bare.state)


@pytest.mark.parametrize("model", MODELS)
def test_deepspeed_goes_on_with_what_megatune_saved(
    worlds: Worlds, session_folder: Path, tmp_path: Path, model: str
) -> None:
    folder = str(write_tiny_model(model, session_folder))
    saved, losses = worlds.run(2, deepspeed_cases.train_and_save, folder, 2, str(tmp_path / "run"))[0]
    target = tmp_path / "universal"

    convert_checkpoint(Path(saved), target, to="deepspeed-universal", model=None, thaw=False)

    for num_ranks in (2, 1):
        case = deepspeed_cases.load_universal
        state, again, step = worlds.run(num_ranks, case, folder, str(target))[0]
        assert step == 2
        assert_holds(Path(saved), state)
        np.testing.assert_allclose(again, losses, rtol=1e-6)
