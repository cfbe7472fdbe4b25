"""ZeRO on one GPU trains like plain torch on it, and goes on exactly: `pytest -m gpu tests/gpu`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="torch.cuda.is_available() is false: no GPU, or tests were not started with exactly `-m gpu`",
    ),
]

# Rounding errors of one value are at most 2^-9 in bf16 and 2^-11 in fp16; as in test_engine_options.py the loss
# stays within one of them and the norm within four. The reference of fp16 is fp32, that of bf16 is bf16.
ROUNDING = {"bf16": 2**-9, "fp16": 2**-11}
MODELS = ["gpt2", "llama"]


@pytest.fixture(scope="module", params=[(m, p) for m in MODELS for p in ROUNDING], ids="-".join)
def answer(request: pytest.FixtureRequest, session_folder: Path) -> dict[str, Any]:
    """What the only rank of a world found, in a process of its own."""
    model, precision = request.param
    folder, written = write_tiny_model(model, session_folder), session_folder / f"{model}-{precision}.json"
    rank = Path(__file__).with_name("one_gpu_rank.py")
    done = subprocess.run(
        [sys.executable, str(rank), str(folder), precision, str(written)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {"precision": precision, **json.loads(written.read_text())}


def test_zero_on_a_gpu_trains_like_plain_torch_on_it(answer: dict[str, Any]) -> None:
    rounding = ROUNDING[answer["precision"]]

    assert answer["device"] == "cuda"
    assert answer["dtypes"] == [{"bf16": "torch.bfloat16", "fp16": "torch.float16"}[answer["precision"]]]
    assert answer["losses"] == pytest.approx(answer["expected_losses"], rel=rounding)
    assert answer["norms"] == pytest.approx(answer["expected_norms"], rel=4 * rounding)
    assert answer["weights_apart"] < 0.1 * answer["weights_moved"]


def test_a_state_that_was_saved_on_a_gpu_goes_on_bit_by_bit(answer: dict[str, Any]) -> None:
    assert answer["resumed"] == [True, 0.0]


def test_a_snapshot_is_pinned_and_keeps_the_numbers_of_its_moment() -> None:
    from megatune.checkpoint.snapshot import HostCopy
    from megatune.engine.state import RankState

    held = {"weight": {"a": torch.randn(1000, device="cuda"), "b": torch.randn(3, device="cuda")}}
    expected = {name: piece.cpu() for name, piece in held["weight"].items()}

    copy = HostCopy().of(RankState(held, {}))
    for piece in held["weight"].values():
        piece.zero_()
    torch.cuda.synchronize()

    for name, piece in copy.tensors["weight"].items():
        assert piece.is_pinned()
        assert torch.equal(piece, expected[name])
