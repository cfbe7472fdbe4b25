"""glibc's allocator, told to keep the memory that a training step frees for the next one."""

import ctypes

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve all allocations from a heap that is not given back; False where there is no glibc.

    By default every tensor above some MiB is memory from the kernel, zeroed page by page as it is touched and
    given back at once: of a small model's step on a CPU a tenth was spent in that. Costs memory where
    sizes change, for freed pieces stay with the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_M_MMAP_THRESHOLD: _LARGEST_INT, _M_TRIM_THRESHOLD: _LARGEST_INT, _M_TOP_PAD: 64 * 2**20}
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted.items()]
    return all(taken)
