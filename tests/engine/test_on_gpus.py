"""What ranks on a GPU do otherwise, as far as a machine without one can show it."""

from types import SimpleNamespace

import deepspeed
import pytest

from megatune.engine import start


def test_no_op_of_deepspeed_is_tried_out_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)

    start._skip_unused_op()

    assert "__compatible_ops__" not in vars(deepspeed.ops), "DeepSpeed fills the table when it is read"
