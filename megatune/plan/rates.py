"""At which rates a device computes and communicates: the table's, what the doctor measured, what runs showed."""

from dataclasses import dataclass, replace

from megatune.plan.calibration import Calibration, Constants
from megatune.plan.hardware import Accelerator
from megatune.plan.links import Links
from megatune.plan.network import Network, network_of
from megatune.plan.speeds import Speeds, speeds_of
from megatune.plan.work import Device

_UNKNOWN_FLOPS = 1e9
"""Where a fit to runs on a CPU begins that no doctor has seen. No plan uses it."""
_NO_LOSSES = Speeds(
    matmul_share=1.0, matmul_half=0.0, attention_share=1.0, memory_share=1.0, link_share=1.0, link_latency_s=0.0,
    network_latency_s=0.0, gather_overhead_s=0.0, overlap=0.0, step_overhead=0.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured at the place of a run; None: nobody did."""

    links: Links | None = None
    cpu_flops_per_s: float | None = None
    """fp32 matrix products of all ranks of one node together, without GPUs."""
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one rank."""

    device: Device
    network: Network


def rates_of(
    accelerator: Accelerator | None,
    measured: Measured,
    *,
    precision: str,
    ranks_per_node: int,
    num_devices: int,
) -> Rates | None:
    """The rates to plan with; None where they are not known. accelerator None: the rank computes on CPU cores."""
    if accelerator is None:
        return _cpu_rates(measured, precision, ranks_per_node, num_devices)
    speeds = speeds_of(accelerator.generation)
    if speeds is None or precision == "fp32":
        return None
    network = network_of(accelerator, speeds, measured.links)
    device = Device(facts=accelerator, speeds=speeds, peak_flops=accelerator.peak_bf16_flops)
    return _calibrated(Rates(device=device, network=network), measured.calibration)


def cpu_rates_to_fit(measured: Measured, ranks_per_node: int) -> Rates:
    """The rates of CPU cores that a calibration starts from, whether a doctor has seen them or not."""
    flops = (measured.cpu_flops_per_s or _UNKNOWN_FLOPS * ranks_per_node) / ranks_per_node
    return Rates(device=_cpu(flops), network=_cpu_network(measured.links))


def slowed(rates: Rates, constants: Constants) -> Rates:
    """`rates` with constants that were fitted."""
    speeds = rates.device.speeds
    slower = replace(
        speeds,
        matmul_share=speeds.matmul_share / constants.compute_factor,
        attention_share=speeds.attention_share / constants.compute_factor,
        memory_share=speeds.memory_share / constants.compute_factor,
        gather_overhead_s=constants.gather_overhead_s,
    )
    return replace(rates, device=replace(rates.device, speeds=slower))


def sustained_flops(rates: Rates) -> float:
    """Operations a second of matrix products of endless size."""
    return rates.device.peak_flops * rates.device.speeds.matmul_share


def _calibrated(rates: Rates, found: Calibration | None) -> Rates:
    if found is None:
        return rates
    factor = sustained_flops(rates) / found.flops_per_s
    return slowed(rates, Constants(compute_factor=factor, gather_overhead_s=found.gather_overhead_s))


def _cpu_rates(measured: Measured, precision: str, ranks_per_node: int, num_devices: int) -> Rates | None:
    if measured.calibration is not None:
        rates = Rates(device=_cpu(measured.calibration.flops_per_s), network=_cpu_network(measured.links))
        return _calibrated(rates, measured.calibration)
    links = measured.links
    knows_inside = (
        num_devices == 1 or ranks_per_node == 1 or (links is not None and links.intra_node is not None)
    )
    knows_between = num_devices <= ranks_per_node or (links is not None and links.inter_node is not None)
    # The doctor multiplies in fp32; how much faster bf16 is differs by processor.
    if measured.cpu_flops_per_s is None or precision != "fp32" or not (knows_inside and knows_between):
        return None
    return Rates(device=_cpu(measured.cpu_flops_per_s / ranks_per_node), network=_cpu_network(links))


def _cpu(flops_per_s: float) -> Device:
    """A rank's cores. What moves data but does not multiply is not known, and takes no time here."""
    endless = float("inf")
    facts = Accelerator(
        name="cpu", matches=(), peak_bf16_flops=flops_per_s, memory_bytes=0, memory_bytes_per_s=endless,
        link_bytes_per_s=endless, host_bytes_per_s=endless, network_bytes_per_s=endless, power_w=0.0,
        generation="cpu", source="measured",
    )  # fmt: skip
    return Device(facts=facts, speeds=_NO_LOSSES, peak_flops=flops_per_s)


def _cpu_network(links: Links | None) -> Network:
    return network_of(_cpu(1.0).facts, _NO_LOSSES, links)
