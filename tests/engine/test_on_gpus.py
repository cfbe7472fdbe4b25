"""What ranks on a GPU do otherwise, as far as a machine without one can show it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
from on_gpu_cases import buffers_on_another_device, train_alone, waits_of_the_timer
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.checkpoint.convert.generators import scalars_of, tensors_of
from megatune.engine import start
from megatune.engine.masters import Piece
from megatune.engine.state import export_state
from megatune.model.build import build_model
from megatune.model.source import open_source
from megatune.train.verify.model import shrink


def test_no_op_of_deepspeed_is_tried_out_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)

    start._skip_unused_op()

    assert "__compatible_ops__" not in vars(deepspeed.ops), "DeepSpeed fills the table when it is read"


@pytest.mark.world
@pytest.mark.parametrize(("model", "table"), [("gptj", "embed_positions"), ("gpt_neo", "bias")])
def test_tables_of_a_model_divided_by_zero_go_to_the_ranks_device(
    worlds: Worlds, session_folder: Path, model: str, table: str
) -> None:
    (found,) = worlds.run(1, buffers_on_another_device, str(write_tiny_model(model, session_folder)))

    assert any(table in name for name in found)
    assert set(found.values()) == {("meta", False)}, "on the rank's device, and no part of a saved model"


def test_drawing_weights_leaves_the_random_numbers_of_gpus_alone(
    session_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, seeds = open_source(write_tiny_model("llama", session_folder)), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)

    for initialize in ("random", "empty"):  # a model of a run; the twin that an evaluation speaks with
        build_model(source, dtype=torch.float32, initialize=initialize, seed=7)
    tensors_of(1), scalars_of(1)
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: {"last": 100})
    shrink(source, tokenizer, tmp_path / "shrunken", seed=7)

    assert seeds == []


@pytest.mark.world
def test_no_timer_waits_for_the_device(worlds: Worlds, session_folder: Path) -> None:
    assert worlds.run(1, waits_of_the_timer, str(write_tiny_model("llama", session_folder)), 2) == [0]


@pytest.mark.world
@pytest.mark.timeout(900)  # the first run on a machine compiles for minutes
@pytest.mark.parametrize(
    ("precision", "tp", "offload", "has_bucket"),
    [
        ("fp32", 1, "none", False),
        ("bf16", 1, "none", False),
        ("bf16", 2, "none", False),
        ("bf16", 1, "optimizer", True),  # DeepSpeed's copies to the host run beside the computation
    ],
)
def test_the_only_data_parallel_rank_adds_its_gradients_up_without_a_bucket(
    worlds: Worlds,
    session_folder: Path,
    extensions: Path,
    precision: str,
    tp: int,
    offload: str,
    has_bucket: bool,
) -> None:
    folder = str(write_tiny_model("llama", session_folder))
    train = {"optimizer": "adamw", "momentum": 0.0}
    settings = {"precision": precision, "train": train, "parallel": {"offload": offload}}

    found = worlds.run(tp, train_alone, folder, tp, settings, str(extensions))[0]

    theirs, ours = found["DeepSpeed"], found["megatune"]
    assert (theirs["has_bucket"], ours["has_bucket"]) == (True, has_bucket)
    assert (ours["losses"], ours["norms"]) == (theirs["losses"], theirs["norms"])
    for name, weight in theirs["weights"].items():
        assert np.array_equal(ours["weights"][name], weight), name


def test_a_step_counter_on_the_device_is_read_once_for_all_parameters() -> None:
    class Counter:
        reads = 0

        def __float__(self) -> float:
            self.reads += 1
            return 3.0

    owner, step = torch.zeros(8), Counter()
    masters: Any = SimpleNamespace(
        saved=lambda name: Piece(owner=owner, start=4 * int(name), count=4, padded=4),
        optimizer=SimpleNamespace(state={owner: {"step": step, "exp_avg": torch.ones(8)}}),
        loss_scaler=None,
    )

    state = export_state(masters, ["0", "1"])

    assert state.scalars["optimizer"] == {"step": {"value": 3.0}}
    assert step.reads == 1
