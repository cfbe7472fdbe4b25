"""Facts about accelerators, one row each with its source. An unknown device has no row and no guess."""

from dataclasses import dataclass

from megatune.errors import PlanError

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """Dense peak rates; marketing figures with 2:4 sparsity are twice these."""

    name: str
    matches: tuple[str, ...]
    """Lower-case parts that the driver's device name must contain, all of them."""
    peak_bf16_flops: float
    memory_bytes: int
    memory_bytes_per_s: float
    """Peak bandwidth of the device's own memory."""
    link_bytes_per_s: float
    """To the other devices of the node, one direction (NVLink; PCIe where there is none)."""
    host_bytes_per_s: float
    """To host memory, one direction (PCIe 4 x16: 32 GB/s, PCIe 5 x16: 64 GB/s)."""
    network_bytes_per_s: float
    """Of the maker's own machine with this device, for each device, one direction."""
    power_w: float
    generation: str
    """Devices of one generation share the constants of speeds.py."""
    source: str


# The first row that matches counts: narrower names stand before wider ones.
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(name="h200-141gb", matches=("h200",), peak_bf16_flops=989e12, memory_bytes=141 * 10**9,
                memory_bytes_per_s=4.8e12, link_bytes_per_s=450e9, host_bytes_per_s=64e9,
                network_bytes_per_s=50e9, power_w=700, generation="hopper",
                source="NVIDIA H200 data sheet (dense = half of the sparse figure); DGX H200: 8 x 400 Gb/s"),
    Accelerator(name="h100-nvl", matches=("h100", "nvl"), peak_bf16_flops=835e12, memory_bytes=94 * 10**9,
                memory_bytes_per_s=3.9e12, link_bytes_per_s=300e9, host_bytes_per_s=64e9,
                network_bytes_per_s=50e9, power_w=400, generation="hopper",
                source="NVIDIA H100 NVL product brief; torchtitan/tools/utils.py"),
    Accelerator(name="h100-pcie", matches=("h100", "pcie"), peak_bf16_flops=756e12, memory_bytes=80 * _GIB,
                memory_bytes_per_s=2.0e12, link_bytes_per_s=64e9, host_bytes_per_s=64e9,
                network_bytes_per_s=25e9, power_w=350, generation="hopper",
                source="NVIDIA H100 data sheet; torchtitan/tools/utils.py"),
    Accelerator(name="h100-80gb", matches=("h100",), peak_bf16_flops=989e12, memory_bytes=80 * _GIB,
                memory_bytes_per_s=3.35e12, link_bytes_per_s=450e9, host_bytes_per_s=64e9,
                network_bytes_per_s=50e9, power_w=700, generation="hopper",
                source="NVIDIA H100 data sheet; torchtitan/tools/utils.py; DGX H100: 8 x 400 Gb/s"),
    Accelerator(name="b200", matches=("b200",), peak_bf16_flops=2250e12, memory_bytes=180 * 10**9,
                memory_bytes_per_s=8.0e12, link_bytes_per_s=900e9, host_bytes_per_s=64e9,
                network_bytes_per_s=50e9, power_w=1000, generation="blackwell",
                source="NVIDIA Blackwell data sheet; torchtitan/tools/utils.py; DGX B200: 8 x 400 Gb/s"),
    Accelerator(name="a100-80gb", matches=("a100", "80gb"), peak_bf16_flops=312e12, memory_bytes=80 * _GIB,
                memory_bytes_per_s=2.039e12, link_bytes_per_s=300e9, host_bytes_per_s=32e9,
                network_bytes_per_s=25e9, power_w=400, generation="ampere",
                source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s"),
    Accelerator(name="a100-40gb", matches=("a100",), peak_bf16_flops=312e12, memory_bytes=40 * _GIB,
                memory_bytes_per_s=1.555e12, link_bytes_per_s=300e9, host_bytes_per_s=32e9,
                network_bytes_per_s=25e9, power_w=400, generation="ampere",
                source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s"),
)  # fmt: skip


def find_accelerator(device_name: str) -> Accelerator | None:
    """The row for the name a driver reports; None when there is none.

    >>> find_accelerator("NVIDIA H100 80GB HBM3").name
    'h100-80gb'
    """
    lowered = device_name.lower()
    return next((row for row in ACCELERATORS if all(part in lowered for part in row.matches)), None)


def accelerator_named(name: str) -> Accelerator:
    """The row called `name`. Raises PlanError with the names there are: a device is never guessed."""
    row = next((row for row in ACCELERATORS if row.name == name.lower()), None)
    if row is None:
        raise PlanError(
            f"--gpu {name}: the hardware table has no such device. It has {', '.join(r.name for r in ACCELERATORS)}; "
            "cpu plans for machines without GPUs."
        )
    return row
