"""What ranks on a GPU do otherwise, as far as a machine without one can show it."""

from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
from on_gpu_cases import buffers_on_another_device
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.engine import start


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
