"""When two traces are equal: the tolerances, why they are what they are, and the comparison."""

import math
from dataclasses import dataclass
from pathlib import Path

from megatune.config import Precision
from megatune.train.verify.trace import Trace, read_weight

_FP32_ROUNDING = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest differences that rounding explains."""

    loss: float
    """Of a step's loss, relative."""
    grad_norm: float
    """Of a step's gradient norm, relative."""
    weights: float
    """Of all weights together: the norm of their difference over the norm of what training changed."""


# fp32: layouts add the same numbers in another order; ten steps of tiny models of 17 families differ by
# some 1e-7 in the loss and 1e-6 in the norm. The weights have more room: Adam divides by the gradient's
# own size, so where that is nothing but rounding (a key bias moves no softmax) it takes whole steps at
# random. GPT-2 and OPT, which have such biases, differ by 2e-4.
# bf16: a number is kept to 2^-9 of itself, and a sum over ranks rounds each rank's part. Losses average
# over tokens, so they are held to one unit in the last place, 2^-8 (found: 9e-4); norms, which are
# sums of gradients that cancel, to four (found: 4e-3); the weights as above, with more noise (found: 0.08
# in a tiny OPT, 0.03 in GPT-2, Llama and Qwen2, 0.05 in SmolLM2-135M). A wrong
# layout can hide in that: fp32 is the proof, and bf16 shows that the mixed-precision path follows it.
# fp16 is compared with fp32. It rounds to 2^-11, finer than bf16, so bf16's bounds hold for it.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(loss=1e-5, grad_norm=1e-4, weights=1e-2),
    "bf16": Tolerance(loss=2.0**-8, grad_norm=2.0**-6, weights=0.25),
    "fp16": Tolerance(loss=2.0**-8, grad_norm=2.0**-6, weights=0.25),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layout against the reference."""

    layout: str
    loss_max_rel: float
    grad_norm_max_rel: float
    weights_max_abs: float
    """Largest difference of any element of the fp32 weights after the last step."""
    weights_update_rel: float | None
    """Norm of the difference of all weights over the norm of what training changed; None if nothing."""
    passed: bool
    first_wrong_step: int | None
    """The first step (from 1) whose loss or gradient norm is out of tolerance."""
    worst_weight: str
    """The weight that holds `weights_max_abs`."""
    engine: str


def compare(
    layout: str, folder: Path, trace: Trace, reference_folder: Path, reference: Trace, tolerance: Tolerance
) -> Row:
    """`trace` in `folder` against `reference`. Reads the weights one at a time."""
    losses = _relative(trace.losses, reference.losses)
    norms = _relative(trace.grad_norms, reference.grad_norms)
    weights = _compare_weights(folder, trace, reference_folder, reference)
    is_equal = [
        loss <= tolerance.loss and norm <= tolerance.grad_norm
        for loss, norm in zip(losses, norms, strict=True)
    ]
    # Each step rounds each weight to fp32 once on either side; beside a tiny update that is much.
    rounding = len(losses) * _FP32_ROUNDING * weights.size
    weights_equal = weights.difference <= tolerance.weights * weights.update + rounding
    return Row(
        layout=layout,
        loss_max_rel=_largest(losses),
        grad_norm_max_rel=_largest(norms),
        weights_max_abs=weights.max_abs,
        weights_update_rel=weights.difference / weights.update if weights.update else None,
        passed=all(is_equal) and weights_equal,
        first_wrong_step=None if all(is_equal) else is_equal.index(False) + 1,
        worst_weight=weights.worst,
        engine=trace.engine,
    )


def _relative(found: list[float], expected: list[float]) -> list[float]:
    """Relative difference of each step; a NaN anywhere stays one, and no tolerance admits it."""
    return [
        abs(a - b) / abs(b) if b else (0.0 if a == b else math.inf)
        for a, b in zip(found, expected, strict=True)
    ]


def _largest(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values, default=0.0)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Norms over all weights together, and the element that differs most."""

    difference: float
    update: float
    size: float
    max_abs: float
    worst: str


def _compare_weights(folder: Path, trace: Trace, reference_folder: Path, reference: Trace) -> _Weights:
    odd = trace.weights.keys() ^ reference.weights.keys()
    if odd:
        where = f"{min(odd)} (there on one side only)"
        return _Weights(difference=math.inf, update=0.0, size=0.0, max_abs=math.inf, worst=where)
    squares, max_abs, worst = [0.0, 0.0, 0.0], 0.0, ""
    for name, file in reference.weights.items():
        expected = read_weight(reference_folder, file).double()
        difference = read_weight(folder, trace.weights[name]).double() - expected
        update = expected - read_weight(reference_folder, reference.initial_weights[name]).double()
        for index, tensor in enumerate((difference, update, expected)):
            squares[index] += tensor.square().sum().item()
        here = difference.abs().max().item()
        if not (here <= max_abs or math.isnan(max_abs)):  # a NaN is the worst of all, and stays it
            max_abs, worst = here, name
    norms = [math.sqrt(square) for square in squares]
    return _Weights(difference=norms[0], update=norms[1], size=norms[2], max_abs=max_abs, worst=worst)
