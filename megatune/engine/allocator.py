"""glibc's allocator, told to keep the memory that a training step frees for the next one."""

import ctypes

from megatune.plan.ledger import GIVEN_BACK_BYTES

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve all allocations from a heap that is not given back; False where there is no glibc.

    By default every tensor above some MiB is memory from the kernel, zeroed page by page as it is touched and
    given back at once: of a small model's step on a CPU a tenth was spent in that. Costs memory where
    sizes change, for freed pieces stay with the process.
    """
    return _set({_M_MMAP_THRESHOLD: _LARGEST_INT, _M_TRIM_THRESHOLD: _LARGEST_INT, _M_TOP_PAD: 64 * 2**20})


def give_back_large_memory() -> bool:
    """Serve allocations of 32 MiB and more by the kernel again; False where there is no glibc.

    For ZeRO stages 1 and 2, whose buckets, flat gradients and gathered weights are as large as the model and made
    anew in each step: pieces of other sizes come to lie in the heap where they were, so that it grows step by
    step. SmolLM2-135M on two ranks: 4.01 -> 2.97 GiB a rank under stage 2, 3.95 -> 3.40 under stage 1, for 5 to 8 %
    more processor time. And for offload, which who is short of memory takes: 3.62 -> 3.13 GiB for 12 %.
    """
    return _set({_M_MMAP_THRESHOLD: GIVEN_BACK_BYTES})


def _set(wanted: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted.items()]
    return all(taken)
