"""Seconds that one device computes: matrix products, attention, and the kernels that only move data.

A product is bound by the tensor cores, and by tiles and memory where a side is short; everything else
by the device's memory. All figures are for one block and one micro-batch on one tensor-parallel rank.
"""

from dataclasses import dataclass

from megatune.plan.activations import activation_name
from megatune.plan.blocks import Weight
from megatune.plan.hardware import Accelerator
from megatune.plan.practice import Practice
from megatune.plan.speeds import Speeds
from megatune.plan.weights import ModelWeights

# Bytes moved for one attention score in forward (2-byte scores): product out, softmax, dropout, product in.
_SCORE_TRAFFIC = {"fused": 11, "eager": 20}
_FLASH_BACKWARD = 2.5  # five products against two, of the scores that are computed again (arXiv:2307.08691)
_LOGIT_TRAFFIC = 30  # bytes a logit: fp32 copies, maximum, sum, gradient (model/loss.py)
_ADAM_TRAFFIC = 30  # bytes a parameter: gradient, master, two moments, low-precision copy


@dataclass(frozen=True)
class Passes:
    """Seconds of forward and backward."""

    forward_s: float
    backward_s: float

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward_s + other.forward_s, self.backward_s + other.backward_s)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator at its sustained rates."""

    facts: Accelerator
    speeds: Speeds
    peak_flops: float
    """Dense peak in the training precision."""

    @property
    def host_bytes_per_s(self) -> float:
        """Of what moves between the device and host memory, one direction at a time."""
        return self.facts.host_bytes_per_s * self.speeds.link_share

    def product_s(self, m: int, n: int, k: int) -> float:
        """Seconds of an m x k by k x n product."""
        share = self.speeds.matmul_share / (1 + self.speeds.matmul_half * (1 / m + 1 / n + 1 / k))
        return 2.0 * m * n * k / (self.peak_flops * share)

    def traffic_s(self, num_bytes: float) -> float:
        """Seconds of moving `num_bytes` through device memory."""
        return num_bytes / (self.facts.memory_bytes_per_s * self.speeds.memory_share)


def block_passes(
    model: ModelWeights, batch: int, seq: int, tensor_parallel: int, device: Device, practice: Practice
) -> Passes:
    """One block of a micro-batch of `batch` sequences."""
    tokens = batch * seq
    matrices = sum(_product_s(weight, tokens, device) for weight in model.multiplied_block(tensor_parallel))
    attention = _attention(model, batch, seq, tensor_parallel, device, practice)
    moved = device.traffic_s(tokens * _elementwise_bytes(model, tensor_parallel, practice))
    once = Passes(matrices, 2 * matrices) + attention + Passes(moved, 2 * moved)
    again = {
        "none": 0.0,
        "full": once.forward_s,
        "attention": attention.forward_s,
        "half": matrices / 2 + moved,
    }[practice.recompute]
    return once + Passes(0.0, again)


def _product_s(weight: Weight, tokens: int, device: Device) -> float:
    """Experts multiply their share of the tokens each, as if it were the same for all."""
    if weight.num_active_params == 0:
        return 0.0
    if weight.experts_per_token is None:
        return device.product_s(tokens, *weight.shape)
    count, *sides = weight.shape
    return count * device.product_s(max(1, tokens * weight.experts_per_token // count), *sides)


def head_passes(model: ModelWeights, tokens: int, tensor_parallel: int, device: Device) -> Passes:
    """The output head and the loss over this rank's part of the vocabulary, or over the classes."""
    rows = model.num_local_outputs(tensor_parallel)
    product = device.product_s(tokens, rows, model.head_width)
    moved = device.traffic_s(tokens * rows * _LOGIT_TRAFFIC)
    return Passes(product + moved / 2, 2 * product + moved / 2)


def optimizer_s(num_params: float, device: Device) -> float:
    """One fused Adam step over `num_params` on the device."""
    return device.traffic_s(num_params * _ADAM_TRAFFIC)


def _attention(
    model: ModelWeights, batch: int, seq: int, tensor_parallel: int, device: Device, practice: Practice
) -> Passes:
    shape = model.shape
    heads, _ = shape.local_heads(tensor_parallel)
    scores = float(batch * heads) * seq * seq
    if practice.attention == "flash":
        flops = 4.0 * scores * shape.head_size / 2  # the causal half
        forward = flops / (device.peak_flops * device.speeds.attention_share)
        return Passes(forward, _FLASH_BACKWARD * forward)
    products = (
        batch
        * heads
        * (device.product_s(seq, seq, shape.head_size) + device.product_s(seq, shape.head_size, seq))
    )
    moved = device.traffic_s(scores * _SCORE_TRAFFIC[practice.attention])
    return Passes(products + moved, 2 * products + 2 * moved)


def _elementwise_bytes(model: ModelWeights, tensor_parallel: int, practice: Practice) -> float:
    """Bytes that one token moves in forward through norms, residuals, dropout, activation and rotation."""
    hidden, features = model.shape.hidden_size, model.ffn_size / tensor_parallel
    if practice.fused_elementwise:
        whole = 22.0 * hidden / (tensor_parallel if practice.sequence_parallel else 1)
        return whole + (6 if model.is_gated else 4) * features
    norms = {w.module for w in model.block if w.component == "norm" and w.shape[0] == hidden}
    # transformers writes RMS norms out: to fp32, squares, mean, product, back, product: 36 bytes an element.
    whole = hidden * (len(norms) * (4 if model.kind.norm.has_bias else 36) + 12)
    widths = (model.shape.num_heads + model.shape.num_kv_heads) * model.shape.head_size / tensor_parallel
    rotated = 20.0 * widths * model.kind.has_angles
    activation = 10 if model.is_gated else 36 if activation_name(model) == "gelu_new" else 4
    return whole + rotated + activation * features
