"""Have one of DeepSpeed's optimizers clear its gradients and leave the weights, as after an overflow.

Each class is told at the place where it looks for overflows itself, so that everything else it does
after one is done as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatune.engine.replacing import replace_method


@contextmanager
def overflowing(optimizer: Any) -> Iterator[None]:
    """Inside, the next step of `optimizer` takes the gradients for overflowed."""
    name, replacement = _where_it_looks(optimizer)
    checks_bf16 = getattr(optimizer, "check_grad_overflow", None)
    replace_method(optimizer, name, replacement)
    if checks_bf16 is not None:
        optimizer.check_grad_overflow = True
    try:
        yield
    finally:
        delattr(optimizer, name)
        if checks_bf16 is not None:
            optimizer.check_grad_overflow = checks_bf16


def _where_it_looks(optimizer: Any) -> tuple[str, Any]:
    def find_overflow(*args: Any, **kwargs: Any) -> bool:
        del args, kwargs
        optimizer.overflow = True
        return True

    if hasattr(optimizer, "_overflow_check_and_loss_scale_update"):  # stage 3
        check = optimizer._overflow_check_and_loss_scale_update

        def find_after_check(*args: Any, **kwargs: Any) -> bool:
            check(*args, **kwargs)
            return find_overflow()

        return "_overflow_check_and_loss_scale_update", find_after_check
    if hasattr(optimizer, "get_grads_for_norm"):  # BF16_Optimizer looks at the norm

        def find_infinite(*, for_clipping: bool = False) -> Any:
            assert not for_clipping, "an infinite norm ends the step before that"
            return [torch.full((1,), float("inf"), device=optimizer.fp32_groups_flat_partition[0].device)], {}

        return "get_grads_for_norm", find_infinite
    return "check_overflow", find_overflow
