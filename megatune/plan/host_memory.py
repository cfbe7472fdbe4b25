"""Host memory that a run needs at the very least on each node: what `mem` is held against before a job queues."""

from megatune.plan.states import optimizer_bytes

# Private memory of a process that has imported torch, DeepSpeed, transformers and datasets (smaps_rollup,
# torch 2.13 CPU build on x86-64): 357 MiB. A CUDA context adds several hundred MiB, which are not counted.
FRAMEWORK_BYTES = 357 * 2**20

# Bytes a parameter: ZeRO, arXiv:1910.02054, section 3.1.
_WEIGHT_AND_GRADIENT_BYTES = {"bf16": 4, "fp16": 4, "fp32": 8}


def host_bytes_at_least(
    num_params: int | None,
    *,
    world_size: int,
    ranks_per_node: int,
    precision: str,
    optimizer: str,
    offload: str,
    on_cpu: bool,
) -> int:
    """A lower bound, in bytes, on what one node's ranks hold in host memory.

    Counted: the libraries of each rank, and the model states that live on the host, which ZeRO-3
    divides evenly: all of them without GPUs, those that are offloaded with GPUs. Not counted:
    activations, buffers, the data, the page cache. `num_params` None counts the libraries alone.

    >>> host_bytes_at_least(1_000_000_000, world_size=8, ranks_per_node=8, precision="bf16",
    ...                     optimizer="adamw", offload="optimizer", on_cpu=False) // 2**20
    14300
    """
    bytes_a_parameter = 0
    if on_cpu or offload == "all":
        bytes_a_parameter = _WEIGHT_AND_GRADIENT_BYTES[precision] + optimizer_bytes(optimizer)
    elif offload == "optimizer":
        bytes_a_parameter = optimizer_bytes(optimizer)
    states = (num_params or 0) * bytes_a_parameter * ranks_per_node // world_size
    return FRAMEWORK_BYTES * ranks_per_node + states
