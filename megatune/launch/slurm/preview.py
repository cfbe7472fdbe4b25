"""What a job will train, as far as a login node can say: ranks, batch, model, memory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatune.config import Run, resolve_batch
from megatune.errors import ModelError, PlanError
from megatune.launch.slurm.request import JobRequest
from megatune.plan.host_memory import host_bytes_at_least
from megatune.plan.weights import count_model

# ZeRO, arXiv:1910.02054, section 3.1: weight and gradient in 2 bytes, fp32 master and two moments.
_MIXED_ADAM_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One run of a job. None is unknown: the model is not in a folder here, or of an unknown type."""

    nodes: int
    ranks: int
    tensor_parallel: int
    data_parallel: int
    micro_batch: int
    accumulation: int
    sequences_per_step: int
    tokens_per_step: int
    num_params: int | None
    flops_per_token: float | None
    """6 x the parameters of all matrices, the head's included; attention's own products come on top."""
    model_state_bytes_per_rank: int | None
    """Weights, gradients and Adam's state, divided over all ranks; activations come on top."""
    host_bytes_per_node_at_least: int

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def preview(run: Run, request: JobRequest) -> Preview:
    """What `run` will be on the nodes of `request`."""
    degree = run.parallel.tp_size
    batch = resolve_batch(run, request.num_ranks // degree)
    num_params, flops = _model(run)
    is_mixed_adam = run.precision != "fp32" and run.train.optimizer in ("adam", "adamw")
    states = None
    if num_params is not None and is_mixed_adam and run.parallel.offload == "none":
        states = -(-_MIXED_ADAM_BYTES * num_params // request.num_ranks)
    return Preview(
        nodes=request.nodes,
        ranks=request.num_ranks,
        tensor_parallel=degree,
        data_parallel=request.num_ranks // degree,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        sequences_per_step=batch.global_sequences,
        tokens_per_step=batch.global_sequences * run.data.max_seq_length,
        num_params=num_params,
        flops_per_token=flops,
        model_state_bytes_per_rank=states,
        host_bytes_per_node_at_least=host_bytes_at_least(
            num_params,
            world_size=request.num_ranks,
            ranks_per_node=request.tasks_per_node,
            precision=run.precision,
            optimizer=run.train.optimizer,
            offload=run.parallel.offload,
            on_cpu=request.gpus is None,
        ),
    )


def _model(run: Run) -> tuple[int | None, float | None]:
    path = Path(run.model.model_name_or_path) / "config.json"
    if not path.is_file():
        return None, None  # a hub id: nothing is fetched before the job runs
    try:
        weights = count_model(json.loads(path.read_text(encoding="utf-8")))
    except (ModelError, PlanError):
        return None, None  # training it may still work: only this count does not know its type
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.") from error
    return weights.num_params, 6.0 * (weights.num_matmul_params + weights.num_head_params)
