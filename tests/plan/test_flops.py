"""FLOPs by the conventions that are named."""

import pytest

from megatune.plan.flops import step_flops
from megatune.plan.hardware import ACCELERATORS, find_accelerator

GPT = {
    "num_matmul_params": 1_200_000_000,
    "num_head_params": 100_000_000,
    "num_layers": 24,
    "attention_width": 2048,
}


def test_the_palm_formula_for_one_full_sequence() -> None:
    tokens = 2048
    flops = step_flops(
        **GPT, tokens=tokens, target_tokens=tokens, squared_lengths=tokens**2, gradient_checkpointing=False
    )
    assert flops.model == pytest.approx(tokens * (6 * 1.3e9 + 12 * 24 * 2048 * tokens))
    assert flops.model - flops.model_causal == pytest.approx(tokens * 6 * 24 * 2048 * tokens)
    assert flops.hardware == flops.model


def test_packed_documents_cost_less_than_one_of_their_length() -> None:
    packed = step_flops(
        **GPT, tokens=2048, target_tokens=10, squared_lengths=4 * 512**2, gradient_checkpointing=False
    )
    whole = step_flops(
        **GPT, tokens=2048, target_tokens=10, squared_lengths=2048**2, gradient_checkpointing=False
    )
    assert packed.model < whole.model


def test_checkpointing_computes_the_blocks_forward_once_more() -> None:
    plain = {**GPT, "tokens": 100, "target_tokens": 0, "squared_lengths": 0}
    once = step_flops(**plain, gradient_checkpointing=False)
    twice = step_flops(**plain, gradient_checkpointing=True)
    assert twice.hardware == pytest.approx(once.model * 4 / 3)
    assert twice.model == once.model


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
    ],
)
def test_the_name_a_driver_reports_finds_its_row(reported: str, name: str) -> None:
    row = find_accelerator(reported)
    assert row is not None
    assert row.name == name


def test_an_unknown_device_is_not_guessed_and_every_row_has_a_source() -> None:
    assert find_accelerator("Some Future GPU") is None
    assert all(row.source for row in ACCELERATORS)
