"""The process groups of a run: tensor parallel shares a model copy, data parallel shares its partitions.

Ranks of a tensor-parallel group are neighbours (rank = data_rank * tensor_parallel + tensor_rank),
so that a group stays inside one node when the degree divides the ranks of a node.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatune.engine.shared_sums import SharedSums
from megatune.errors import ConfigError, MegatuneError, UserError
from megatune.model.collectives import TensorGroup

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class World:
    """This rank's place. Also the `mpu` that DeepSpeed asks for groups (Megatron's interface)."""

    rank: int
    size: int
    tensor_parallel: int
    device: torch.device
    data_group: dist.ProcessGroup | None
    data_ranks: tuple[int, ...]
    tensor_group: TensorGroup

    @property
    def data_parallel(self) -> int:
        return self.size // self.tensor_parallel

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor_parallel

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_parallel

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # Megatron's names, as DeepSpeed calls them (deepspeed/utils/groups.py, runtime/engine.py).
    def get_model_parallel_group(self) -> Any:
        return self.tensor_group.process_group

    def get_model_parallel_rank(self) -> int:
        return self.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self.tensor_parallel

    def get_data_parallel_group(self) -> Any:
        return self.data_group

    def get_data_parallel_group_ranks(self) -> tuple[int, ...]:
        return self.data_ranks

    def get_data_parallel_rank(self) -> int:
        return self.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self.data_parallel

    # What the step and the loop ask for.
    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """In-place sum over the data-parallel ranks. Collective: every rank calls it."""
        if self.data_parallel > 1:
            dist.all_reduce(values, group=self.data_group)
        return values

    def sum_over_all(self, values: torch.Tensor) -> torch.Tensor:
        """In-place sum over all ranks. Collective: every rank calls it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank. Collective: every rank calls it."""
        return self.any_ranks(flag)[0]

    def any_ranks(self, *flags: bool) -> list[bool]:
        """For each of the flags, whether it is true on some rank. Collective: every rank calls it."""
        values = torch.tensor([float(flag) for flag in flags], device=self.device)
        return [value > 0 for value in self.sum_over_all(values).tolist()]

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank. Collective: every rank calls it."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` on every rank. Collective: every rank calls it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def first_rank(self, act: Callable[[], Answer]) -> Answer:
        """Run `act` on rank 0 only; its answer, or its failure, on every rank. Collective.

        Rank 0 raises what `act` raised. The others raise the same class of MegatuneError with the same
        words, and a MegatuneError that names rank 0 for anything else: no rank waits for one that
        failed. An answer of None costs one small broadcast.
        """
        if self.size == 1:
            return act()
        answer, failure = _attempt(act) if self.is_first else (None, None)
        told = torch.tensor(
            [answer is not None or failure is not None], dtype=torch.int64, device=self.device
        )
        dist.broadcast(told, src=0)
        if not told.item():
            return answer  # type: ignore[return-value]
        shared, for_others = self.broadcast_object((answer, failure and _for_others(failure)))
        if failure is not None:
            raise failure
        if for_others is not None:
            kind, words = for_others
            raise kind(words)
        return shared  # type: ignore[no-any-return]

    def barrier(self) -> None:
        """Wait for all ranks. Collective: every rank calls it."""
        if self.size > 1:
            dist.barrier()


def _attempt(act: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        return None, error


def _for_others(failure: Exception) -> tuple[type[MegatuneError], str]:
    """The class and the words of an error that other ranks raise for one of rank 0."""
    if not isinstance(failure, MegatuneError):
        return MegatuneError, f"rank 0 failed: {type(failure).__name__}: {failure}"
    if type(failure).__init__ is Exception.__init__:
        return type(failure), str(failure)
    return (UserError if isinstance(failure, UserError) else MegatuneError), str(failure)


def own_device() -> torch.device:
    """Of a process without others."""
    # Not by DeepSpeed, which takes seconds to import and is not needed for one device.
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def single_world(device: torch.device | None = None) -> World:
    """One process without any process group: the reference that layouts are compared with."""
    return World(
        rank=0,
        size=1,
        tensor_parallel=1,
        device=device or torch.device("cpu"),
        data_group=None,
        data_ranks=(0,),
        tensor_group=TensorGroup(),
    )


def check_degrees(world_size: int, tensor_parallel: int) -> None:
    """Raise ConfigError when `tensor_parallel` does not divide the ranks."""
    if world_size % tensor_parallel:
        allowed = [degree for degree in range(1, world_size + 1) if world_size % degree == 0]
        raise ConfigError(
            [
                f"parallel.tp_size = {tensor_parallel} does not divide the {world_size} ranks. "
                f"Use one of {', '.join(map(str, allowed))}, or change launch.nproc_per_node or launch.nodes."
            ]
        )


def make_world(tensor_parallel: int, device: torch.device, *, timeout_s: float | None = None) -> World:
    """The groups of this job. Collective: every rank calls it, after the process group exists.

    `timeout_s`: how long a collective inside a group waits for a rank; None is torch's default, which
    is not that of the process group.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    check_degrees(size, tensor_parallel)
    tensor_ranks = [list(range(start, start + tensor_parallel)) for start in range(0, size, tensor_parallel)]
    data_ranks = [list(range(start, size, tensor_parallel)) for start in range(tensor_parallel)]
    tensor_group, _ = _own_group(tensor_ranks, rank, timeout_s)
    data_group, mine = _own_group(data_ranks, rank, timeout_s)
    is_summed_here = device.type == "cpu" and tensor_parallel > 1
    own_sum = SharedSums.install(tensor_group) if is_summed_here else None
    return World(
        rank=rank,
        size=size,
        tensor_parallel=tensor_parallel,
        device=device,
        data_group=data_group,
        data_ranks=tuple(mine),
        tensor_group=TensorGroup(rank % tensor_parallel, tensor_parallel, tensor_group, own_sum),
    )


def _own_group(rank_lists: list[list[int]], rank: int, timeout_s: float | None) -> tuple[Any, list[int]]:
    """Create all groups in the same order on every rank, as torch requires; return this rank's."""
    timeout = None if timeout_s is None else process_group_timeout(timeout_s)
    groups = [dist.new_group(ranks, timeout=timeout) for ranks in rank_lists]
    index = next(i for i, ranks in enumerate(rank_lists) if rank in ranks)
    return groups[index], rank_lists[index]


def process_group_timeout(timeout_s: float) -> datetime.timedelta:
    """How long a collective waits for a missing rank."""
    return datetime.timedelta(seconds=timeout_s)
