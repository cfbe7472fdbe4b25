"""Join the ranks of a job, and leave it."""

import datetime
import gc
import importlib
import random
import warnings
from contextlib import suppress
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # where torch's own stubs have them

from megatune.engine.accelerator import own_device
from megatune.engine.allocator import keep_freed_memory
from megatune.engine.world import World, check_degrees, make_world, process_group_timeout
from megatune.errors import LaunchError
from megatune.launch import ranks
from megatune.launch.ports import PortTakenError
from megatune.launch.rank_info import RankInfo
from megatune.launch.rank_logs import port_was_taken


def join(rank: RankInfo, *, tensor_parallel: int, timeout_s: float) -> World:
    """Enter the process group and make the groups of the layout. Collective: every rank calls it.

    Raises PortTakenError on rank 0 when another program has its port, LaunchError when there are more
    ranks than GPUs.
    """
    check_degrees(rank.world_size, tensor_parallel)
    device = enter(rank, timeout_s=timeout_s)
    return make_world(tensor_parallel, device, timeout_s=timeout_s)


def enter(rank: RankInfo, *, timeout_s: float) -> torch.device:
    """Enter the process group, before anybody knows the layout; the device that this rank trains on. Collective.

    Raises as `join` does.
    """
    threads = ranks.own_threads()
    if threads is not None:  # a forked rank has loaded torch before its environment was set
        torch.set_num_threads(threads)
    _skip_unused_op()
    _skip_unused_compiler()
    _keep_imports_out_of_collections()
    device = own_device(rank.local_rank, rank.local_world_size)
    if device.type == "cpu":
        keep_freed_memory()
    if device.index is not None:
        ranks.use_device_index(device.index)
        get_accelerator().set_device(device.index)
    _enter_process_group(rank, device, timeout_s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    if dist.get_world_size() != rank.world_size:
        raise LaunchError(
            f"the launcher promised {rank.world_size} ranks, the process group has {dist.get_world_size()}."
        )
    return device


def _enter_process_group(rank: RankInfo, device: torch.device, timeout_s: float) -> None:
    backend = "gloo" if device.type == "cpu" else get_accelerator().communication_backend_name()
    timeout = process_group_timeout(timeout_s)
    store = _store_of_agent(rank, timeout)
    place: dict[str, Any] = (
        {} if store is None else {"store": store, "rank": rank.rank, "world_size": rank.world_size}
    )
    try:
        dist.init_process_group(
            backend,
            **place,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except dist.DistNetworkError as error:
        if rank.rank == 0 and port_was_taken(str(error), rank.master_port):
            raise PortTakenError(
                f"rank 0 cannot listen on port {rank.master_port}, where the ranks are to meet: address already in "
                "use by another program on this host."
            ) from error
        raise
    except dist.DistStoreError as error:
        raise LaunchError(
            f"rank {rank.rank} waited {timeout.total_seconds():g} s at {rank.master_addr}:{rank.master_port}, where "
            f"the environment says that {rank.world_size} ranks meet, and not all came ({error}). Start all of them; "
            "where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are left over from another job, unset them."
        ) from error


def _store_of_agent(rank: RankInfo, timeout: datetime.timedelta) -> Store | None:
    """The store that torchrun holds, with names of this start's own; None where rank 0 opens one.

    torch would look into it without: after a restart it finds the addresses of ranks that are gone.
    """
    prefix = ranks.agent_store_prefix()
    if prefix is None:
        return None
    store = TCPStore(rank.master_addr, rank.master_port, rank.world_size, is_master=False, timeout=timeout)
    return PrefixStore(f"{prefix}/{rank.world_size}", store)


def share_object(value: Any) -> Any:
    """The first rank's `value` on every rank, before there are groups. Collective: every rank calls it."""
    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def leave() -> None:
    """Leave the process group, so that the other ranks do not take this one for dead."""
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_everything(seed: int, world: World) -> None:
    """Random numbers equal inside a tensor-parallel group and different over data-parallel ranks.

    The ranks of a group work on the same tokens: a dropout mask that differs between them would
    make their replicated weights drift apart without an error.
    """
    value = seed + 1000 * world.data_rank
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def _skip_unused_op() -> None:
    """Keep DeepSpeed from compiling its CPU shared-memory op, a minute at the first start.

    Only `inference_all_reduce` uses it (deepspeed/comm/torch.py), which training never calls. On a GPU there is no
    such op, and to read the table tries out all of them, with compilers.
    """
    if get_accelerator().device_name() != "cpu":
        return
    deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}


def _skip_unused_compiler() -> None:
    """Keep DeepSpeed from loading torch's compiler, a second of processor time and 546 modules in every rank.

    All its ZeRO optimizers look into its module of Muon, which decorates three functions with `torch.compile`
    (deepspeed/runtime/zero/muon/original_muon.py). No run of megatune has that optimizer.
    """
    compile_functions = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        # A later DeepSpeed may have it elsewhere: that costs time, no more.
        with suppress(ModuleNotFoundError):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_functions


def _keep_imports_out_of_collections() -> None:
    """Let the collector pass over what was imported: half a million objects, half a second each time.

    DeepSpeed asks it to collect whenever it makes an optimizer (`defragment`, deepspeed/runtime/zero/utils.py).
    """
    gc.collect()  # what is frozen is never freed
    gc.freeze()
