"""Floating-point operations of training, by named conventions (they differ by a third between projects)."""

from dataclasses import dataclass

from megatune.plan.weights import ModelWeights


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of one optimizer step over all ranks, forward and backward.

    `model`: 6 x matrix parameters x tokens + 12 x layers x heads x head size x sum of squared document
    lengths (PaLM, arXiv:2204.02311, appendix B), real tokens only, documents of a packed row counted on
    their own as they do not attend to each other; the head counts for the tokens it is computed for.
    `model_causal`: the attention term halved, because a causal kernel skips half of it.
    `hardware`: `model` plus what gradient checkpointing computes again.
    """

    model: float
    model_causal: float
    hardware: float


def model_flops(
    model: ModelWeights, *, tokens: int, squared_lengths: int, gradient_checkpointing: bool
) -> StepFlops:
    """The operations of a step of `model` whose tokens are all targets."""
    return step_flops(
        num_matmul_params=model.num_matmul_params,
        num_head_params=model.num_head_params,
        num_layers=model.shape.num_layers,
        attention_width=model.shape.attention_width,
        tokens=tokens,
        target_tokens=tokens,
        squared_lengths=squared_lengths,
        gradient_checkpointing=gradient_checkpointing,
    )


def step_flops(
    *,
    num_matmul_params: int,
    num_head_params: int,
    num_layers: int,
    attention_width: int,
    tokens: int,
    target_tokens: int,
    squared_lengths: int,
    gradient_checkpointing: bool,
) -> StepFlops:
    """The operations of a step with these token counts.

    >>> step_flops(num_matmul_params=10**9, num_head_params=0, num_layers=24, attention_width=2048,
    ...            tokens=2048, target_tokens=2048, squared_lengths=2048**2, gradient_checkpointing=False).model
    14761901162496.0
    """
    blocks = 6.0 * num_matmul_params * tokens
    head = 6.0 * num_head_params * target_tokens
    attention = 12.0 * num_layers * attention_width * squared_lengths
    model = blocks + head + attention
    again = (blocks + attention) / 3 if gradient_checkpointing else 0.0
    return StepFlops(model=model, model_causal=model - attention / 2, hardware=model + again)
