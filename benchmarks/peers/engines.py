"""What a user would pick instead of megatune, each as one object with a `step`.

All train the same `transformers` model on the same rows with AdamW and gradients clipped to norm 1. Low
precision means what it does in megatune: bf16 weights, fp32 masters and optimizer state.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Setting:
    """What every peer of one comparison is given."""

    model: str
    """Folder of the model that all begin with."""
    precision: str
    learning_rate: float
    seed: int
    device: torch.device
    micro_batch: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Peer(Protocol):
    """One way to train."""

    data_parallel: int
    """Ranks that see different rows; the others repeat those of a neighbour."""

    @property
    def engine(self) -> str:
        """What really runs, asked of the objects themselves."""

    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Train on (batch, seq) token ids. This rank's mean loss, as a scalar."""


def loaded_model(setting: Setting, dtype: torch.dtype | None = None) -> nn.Module:
    """The model, whole on this rank."""
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype or setting.dtype)
    return model.to(setting.device).train()


def adamw(parameters: Iterable[nn.Parameter], setting: Setting) -> torch.optim.Optimizer:
    """The optimizer of all peers that may choose one; its fused kernel wants distributed tensors apart."""
    every = list(parameters)
    groups = [[p for p in every if isinstance(p.data, DTensor) is cut] for cut in (False, True)]
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=setting.learning_rate,
        weight_decay=0.0,
        fused=True,
    )


def loss_of(model: Callable[..., Any], input_ids: torch.Tensor) -> torch.Tensor:
    """The model's own loss: every token but the first of a row is a target."""
    return model(input_ids=input_ids, labels=input_ids, use_cache=False).loss  # type: ignore[no-any-return]


def clip(parameters: list[nn.Parameter]) -> None:
    """Scale gradients down to a global norm of MAX_GRAD_NORM.

    torch's own refuses a mixture of plain and distributed gradients, which tensor parallelism makes: there the
    squares of the shares are added over the ranks in one collective.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    shares = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    if len(shares) in (0, len(grads)):
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        return
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    squares = nn.utils.get_total_norm(shares) ** 2
    dist.all_reduce(squares)
    norm = (squares + nn.utils.get_total_norm(whole) ** 2).sqrt()
    torch._foreach_mul_([*shares, *whole], (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0).item())


class Torch:
    """A torch module whose gradients are whole when backward returns; fp32 masters for bf16 weights."""

    def __init__(self, model: nn.Module, setting: Setting, data_parallel: int) -> None:
        self._model, self.data_parallel = model, data_parallel
        self._weights = list(model.parameters())
        self._masters = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self._weights
        ]
        self._optimizer = adamw(self._masters, setting)

    @property
    def engine(self) -> str:
        weight = type(self._weights[0].data).__name__
        return f"{type(self._model).__name__} of {weight}, {type(self._optimizer).__name__}"

    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        loss = loss_of(self._model, input_ids)
        loss.backward()
        for weight, master in zip(self._weights, self._masters, strict=True):
            if master is not weight:
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        clip(self._masters)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                if master is not weight:
                    weight.copy_(master)
        return loss.detach()


def floor(setting: Setting) -> Peer:
    """Independent processes that never communicate: what the arithmetic alone costs."""
    return Torch(loaded_model(setting), setting, dist.get_world_size())


def ddp(setting: Setting) -> Peer:
    """torch DistributedDataParallel: every rank holds the whole model and optimizer."""
    model = nn.parallel.DistributedDataParallel(loaded_model(setting))
    return Torch(model, setting, dist.get_world_size())


def fsdp2(setting: Setting) -> Peer:
    """torch fully_shard on each block and the whole, as its documentation does; its own mixed precision."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    model = loaded_model(setting, torch.float32)
    policy = (
        MixedPrecisionPolicy(param_dtype=setting.dtype, reduce_dtype=torch.float32)
        if setting.dtype != torch.float32
        else MixedPrecisionPolicy()
    )
    mesh = dist.device_mesh.init_device_mesh(setting.device.type, (dist.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    assert isinstance(model, FSDPModule)
    return Torch(model, setting, dist.get_world_size())


def dtensor_tp(setting: Setting) -> Peer:
    """torch parallelize_module: linears and vocabulary cut over all ranks, norms replicated."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = loaded_model(setting)
    mesh = dist.device_mesh.init_device_mesh(setting.device.type, (dist.get_world_size(),))
    block = {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    plan: dict[str, Any] = {
        f"model.layers.{index}.{name}": style
        for index in range(len(model.model.layers))
        for name, style in block.items()
    }
    if model.lm_head.weight is not model.model.embed_tokens.weight:  # a tied head cannot be cut alone
        plan["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
        plan["lm_head"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, plan)
    return Torch(model, setting, data_parallel=1)


class DeepSpeed:
    """A DeepSpeed engine, made by DeepSpeed itself or by accelerate."""

    def __init__(self, engine: Any, stage: int, *, backward: Callable[[torch.Tensor], None]) -> None:
        if type(engine).__name__ != "DeepSpeedEngine" or engine.zero_optimization_stage() != stage:
            raise SystemExit(f"asked for DeepSpeed stage {stage}, got {type(engine).__name__}")
        self._engine, self._backward, self.data_parallel = engine, backward, dist.get_world_size()

    @property
    def engine(self) -> str:
        stage = self._engine.zero_optimization_stage()
        return f"{type(self._engine).__name__} stage {stage}, {type(self._engine.optimizer).__name__}"

    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        loss = loss_of(self._engine, input_ids)
        self._backward(loss)
        return loss.detach()


def deepspeed_config(setting: Setting, stage: int) -> dict[str, Any]:
    """DeepSpeed's defaults but for what all peers share."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": setting.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": MAX_GRAD_NORM,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return {**config, "bf16": {"enabled": True}} if setting.precision == "bf16" else config


def without_unused_op() -> None:
    """Keep DeepSpeed from compiling an op for CPUs that training never calls, in the middle of a measurement."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return  # there is no such op, and to read the table tries out all of them, with compilers
    deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}


def deepspeed_zero(setting: Setting, stage: int) -> Peer:
    """deepspeed.initialize on the model, nothing around it."""
    import deepspeed

    without_unused_op()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    config = deepspeed_config(setting, stage)
    model = loaded_model(setting)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=adamw(model.parameters(), setting), config=config, dist_init_required=False
    )

    def backward(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.step()

    return DeepSpeed(engine, stage, backward=backward)


def accelerate_deepspeed(setting: Setting) -> Peer:
    """accelerate with its DeepSpeedPlugin, stage 3."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin

    without_unused_op()
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(setting, 3))
    accelerator = Accelerator(deepspeed_plugin=plugin)
    model = loaded_model(setting)
    engine, optimizer = accelerator.prepare(model, adamw(model.parameters(), setting))

    def backward(loss: torch.Tensor) -> None:
        accelerator.backward(loss)  # accelerate steps the engine here
        optimizer.step()
        optimizer.zero_grad()

    return DeepSpeed(engine, 3, backward=backward)


PEERS: dict[str, Callable[[Setting], Peer]] = {
    "floor": floor,
    "ddp": ddp,
    "fsdp2": fsdp2,
    "dtensor-tp": dtensor_tp,
    "deepspeed-zero1": lambda setting: deepspeed_zero(setting, 1),
    "deepspeed-zero3": lambda setting: deepspeed_zero(setting, 3),
    "accelerate-deepspeed": accelerate_deepspeed,
}
"""Every peer that gives its loop to the caller; `trainer-zero3` keeps its own (hf_trainer.py)."""
