"""Facts about accelerators, one row each with its source. An unknown device has no row and no guess."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """Dense peak rates; marketing figures with 2:4 sparsity are twice these."""

    name: str
    matches: tuple[str, ...]
    """Lower-case parts that the driver's device name must contain, all of them."""
    peak_bf16_flops: float
    memory_bytes: int
    source: str


_GIB = 2**30

# The first row that matches counts: narrower names stand before wider ones.
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(name="h200-141gb", matches=("h200",), peak_bf16_flops=989e12, memory_bytes=141 * 10**9,
                source="NVIDIA H200 data sheet (dense = half of the sparse figure)"),
    Accelerator(name="h100-nvl", matches=("h100", "nvl"), peak_bf16_flops=835e12, memory_bytes=94 * 10**9,
                source="NVIDIA H100 NVL product brief; torchtitan/tools/utils.py"),
    Accelerator(name="h100-pcie", matches=("h100", "pcie"), peak_bf16_flops=756e12, memory_bytes=80 * _GIB,
                source="NVIDIA H100 data sheet; torchtitan/tools/utils.py"),
    Accelerator(name="h100-80gb", matches=("h100",), peak_bf16_flops=989e12, memory_bytes=80 * _GIB,
                source="NVIDIA H100 data sheet; torchtitan/tools/utils.py"),
    Accelerator(name="b200", matches=("b200",), peak_bf16_flops=2250e12, memory_bytes=180 * 10**9,
                source="NVIDIA Blackwell data sheet; torchtitan/tools/utils.py"),
    Accelerator(name="a100-80gb", matches=("a100", "80gb"), peak_bf16_flops=312e12, memory_bytes=80 * _GIB,
                source="NVIDIA A100 data sheet"),
    Accelerator(name="a100-40gb", matches=("a100",), peak_bf16_flops=312e12, memory_bytes=40 * _GIB,
                source="NVIDIA A100 data sheet"),
)  # fmt: skip


def find_accelerator(device_name: str) -> Accelerator | None:
    """The row for the name a driver reports; None when there is none.

    >>> find_accelerator("NVIDIA H100 80GB HBM3").name
    'h100-80gb'
    """
    lowered = device_name.lower()
    return next((row for row in ACCELERATORS if all(part in lowered for part in row.matches)), None)
