"""All-reduce of activations through memory that the ranks of one host share, for tensor parallelism on CPUs.

gloo sends each tensor through sockets in several messages. Here a rank writes its part, meets the others once, and
adds up all parts in the order of the ranks: the same bits on each of them.
"""

import torch
import torch.distributed as dist

from megatune.engine.shared_memory import SharedMemory, profiled, share

_SLOT_BYTES = 2**20
"""Of a rank; larger tensors go in pieces, so that a part is still in the processor's cache when it is added."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SharedSums:
    """Sums of a group's tensors, in place. Collective: every rank makes one, and all calls are of every rank."""

    def __init__(self, shared: SharedMemory, *, rank: int, size: int) -> None:
        self._shared, self._rank, self._size = shared, rank, size
        # (turn, writer, bytes)
        self._slots = shared.memory.view(2, size, _SLOT_BYTES)
        self._turn = 0

    @classmethod
    def install(cls, group: dist.ProcessGroup) -> "SharedSums | None":
        """None without shared memory."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        shared = share(2 * size * _SLOT_BYTES, group)
        return None if shared is None else cls(shared, rank=rank, size=size)

    def __call__(self, tensor: torch.Tensor) -> bool:
        """Sum `tensor` over the ranks; False, and nothing done, for another dtype or one with gaps."""
        if tensor.dtype not in _DTYPES or not tensor.is_contiguous():
            return False
        with profiled("megatune::reduce"):
            for piece in tensor.view(-1).split(_SLOT_BYTES // tensor.itemsize):
                self._sum(piece)
        return True

    def _sum(self, piece: torch.Tensor) -> None:
        # Two slots a rank, in turn: who writes here again has met all others since, after they had read this.
        parts = self._slots[self._turn, :, : piece.numel() * piece.itemsize].view(piece.dtype)
        self._turn = 1 - self._turn
        parts[self._rank].copy_(piece)
        self._shared.meet()
        if self._size == 2:
            torch.add(parts[0], parts[1], out=piece)
        else:
            torch.sum(parts, dim=0, out=piece)
