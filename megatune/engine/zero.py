"""The DeepSpeed engine: ZeRO 1, 2 or 3 over the data-parallel ranks of tensor-parallel shares."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups, safe_get_full_fp32_param, set_z3_leaf_modules
from torch import nn

from megatune.config import Run
from megatune.engine.accounting import HeldBytes, zero_gradient_bytes, zero_held
from megatune.engine.annotate import annotate
from megatune.engine.base import StepOutcome
from megatune.engine.disk_states import DiskStates
from megatune.engine.dtypes import DTYPES
from megatune.engine.kernels import widens_bf16
from megatune.engine.leave_out import overflowing
from megatune.engine.masters import FlatGroups, StageThree
from megatune.engine.optimizers import make_optimizer, name_of_optimizer, parameter_groups
from megatune.engine.partitioning import expected_partitioning, partitioning
from megatune.engine.speaker import Gather, Speaker, speaking, whole_weights_fit
from megatune.engine.state import RankState, SavedState, export_state, load_on_all_ranks
from megatune.engine.take_over import take_over
from megatune.engine.whole import whole_weights
from megatune.engine.world import World
from megatune.errors import ConfigError, MegatuneError
from megatune.model.build import BuiltModel, build_model
from megatune.model.compiled import compile_blocks
from megatune.model.forward import (
    TokenBatch,
    loss_of_batch,
    make_head_loss,
    row_arguments,
    row_losses_of_batch,
)
from megatune.model.head_loss import HeadLoss
from megatune.model.source import ModelSource
from megatune.model.twin import empty_twin, fill
from megatune.plan.buckets import quantized_messages
from megatune.plan.shards import Division

_GATHERED_AT_ONCE_BYTES = 64 * 2**20


def _build(
    run: Run, source: ModelSource, world: World, ds_config: dict[str, Any], *, widen_bf16: bool
) -> BuiltModel:
    dtype = DTYPES[run.precision]
    near = _near_group(ds_config)

    def partition(module: nn.Module) -> None:
        if run.parallel.zero_stage < 3:
            module.to(world.device)
            return
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=world.data_group,
            config_dict_or_path=ds_config,
            dtype=dtype,
            mpu=world,
            zero_param_parallel_group=near,
        )
        _move_buffers(module, world.device)

    return build_model(
        source,
        dtype=dtype,
        initialize=run.model.initialize,
        attn_implementation=run.model.attn_implementation,
        gradient_checkpointing=run.model.gradient_checkpointing is True,
        seed=run.train.seed,
        group=world.tensor_group,
        place=partition,
        widen_bf16=widen_bf16,
    )


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """Bring tables of positions and the like to the weights: DeepSpeed moves parameters only where it divides them."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
            setattr(owner, name, buffer.to(device))


def _near_group(ds_config: dict[str, Any]) -> Any:
    """The ranks that keep a second copy of the weights between them (hpZ); None without. Made once a process."""
    size = ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if size == 1:
        return None
    if groups._get_zero_param_intra_parallel_group() is None:
        groups._create_zero_param_parallel_group(size)
    return groups._get_zero_param_intra_parallel_group()


def refuse_quantized(ds_config: dict[str, Any], world: World) -> None:
    """Raise ConfigError where DeepSpeed has no kernels for the policy's quantized messages."""
    asked = quantized_messages(ds_config)
    if asked and world.device.type == "cpu":
        raise ConfigError(
            [
                f"the policy asks for {' and '.join(asked)}, whose kernels DeepSpeed has for GPUs only. Take another "
                "policy, for instance ds_configs/zero3_hpz.json."
            ]
        )


def refuse_precision(run: Run, world: World) -> None:
    """Raise ConfigError where DeepSpeed would refuse fp16, before any weight is read."""
    if run.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            [
                f"precision = fp16, but DeepSpeed does not train in fp16 on this device ({world.device}). "
                "Use precision=bf16, which needs no loss scale, or precision=fp32."
            ]
        )


class ZeroEngine:
    """Trains a model of `build_model` under DeepSpeed ZeRO stage 1, 2 or 3."""

    def __init__(self, run: Run, source: ModelSource, world: World, ds_config: dict[str, Any]) -> None:
        self.world, self._run = world, run
        refuse_precision(run, world)
        refuse_quantized(ds_config, world)
        self._widened = widens_bf16(run.precision, world)
        self.built = _build(run, source, world, ds_config, widen_bf16=self._widened)
        model = self.built.model
        if run.parallel.leaf_modules and run.parallel.zero_stage == 3:
            set_z3_leaf_modules(model, [self.built.block_class])
        if run.model.compile:
            compile_blocks(model, self.built.block_class, world.tensor_group)
        on_host = run.parallel.offload != "none"
        self._on_disk = None if run.parallel.disk_folder is None else DiskStates(run.parallel.disk_folder)
        by_decay = parameter_groups(
            dict(model.named_parameters()), run.train.weight_decay, unread=self.built.unread
        )
        making = nullcontext() if self._on_disk is None else self._on_disk.made_by_deepspeed()
        with (
            making,
            redirect_stdout(io.StringIO()),
        ):  # BF16_Optimizer prints the memory of the machine a dozen times
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=make_optimizer(by_decay, run.train, on_host=on_host),
                config=ds_config,
                mpu=world,
                dist_init_required=False,
            )
        self._engine.train()
        self._parameters = dict(model.named_parameters())
        self._check_active()
        zero = self._engine.optimizer
        if self._on_disk is not None:
            self._on_disk.follow(zero)
        self._taken_over = take_over(zero, list(self._parameters.values()), run, world, ds_config)
        if run.train.profile is not None and run.parallel.zero_stage == 3:
            annotate(zero)
        self._head_loss = make_head_loss(self.built, widen=self._widened)
        self.chunked_loss = self._head_loss is not None and run.train.chunked_loss is not False
        kind = StageThree if run.parallel.zero_stage == 3 else FlatGroups
        self._masters: StageThree | FlatGroups = kind(zero, self._parameters)
        self._divisions = self._ask_divisions()
        self._gradient_bytes: int | None = None

    @property
    def divisions(self) -> dict[str, tuple[Division, ...]] | None:
        return self._divisions

    @property
    def is_replicated(self) -> bool:
        return False

    def _how_layers_are_summed(self) -> str:
        return ", sums of tensor parallelism through shared memory" if self.world.tensor_group.own_sum else ""

    @property
    def description(self) -> str:
        zero = type(self._engine.optimizer).__name__
        dtype = next(iter(self._parameters.values())).dtype
        offload = "" if self._run.parallel.offload == "none" else f", offload {self._run.parallel.offload}"
        return (
            f"DeepSpeed {deepspeed.__version__} {zero} (stage {self._engine.zero_optimization_stage()}) over "
            f"dp={self.world.data_parallel} x tp={self.world.tensor_parallel}, {dtype} weights, "
            f"{name_of_optimizer(self._engine.basic_optimizer)} on fp32 masters{offload}, device {self.world.device}"
            f"{self._taken_over}{self._how_layers_are_summed()}{', bf16 multiplied in fp32' if self._widened else ''}"
        )

    @property
    def _loss_in_head(self) -> HeadLoss | None:
        return self._head_loss if self.chunked_loss else None

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        return loss_of_batch(self._engine, self.built, batch, self.world.device, self._loss_in_head)

    def row_losses(self, batch: TokenBatch) -> torch.Tensor:
        return row_losses_of_batch(self._engine, self.built, batch, self.world.device, self._loss_in_head)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        device = self.world.device
        arguments = row_arguments(self.built, input_ids.to(device), position_ids.to(device))
        return self._engine(**arguments).logits  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages gradients over the data-parallel ranks; the step wants their sum.
        self._engine.backward(loss * self.world.data_parallel, scale_wrt_gas=False)
        if not is_last:
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self, learning_rate: float, *, leave_out: bool = False) -> StepOutcome:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._gradient_bytes is None:
            self._refuse_left_gradients()
            self._gradient_bytes = zero_gradient_bytes(self._engine.optimizer)
        skipped_before = self._engine.skipped_steps
        with overflowing(self._engine.optimizer) if leave_out else nullcontext():
            self._engine.step()
        skipped = self._engine.skipped_steps > skipped_before
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(grad_norm=None if skipped or norm is None else float(norm), skipped=skipped)

    def _refuse_left_gradients(self) -> None:
        """Stop before a step that some gradients have no part in: a block that gives a list has no hook of stage 3."""
        is_divided = self._run.parallel.zero_stage == 3
        left = [
            name for name, parameter in self._parameters.items() if is_divided and parameter.grad is not None
        ]
        if left:
            raise MegatuneError(
                f"DeepSpeed has not taken the gradients of {len(left)} parameters, {left[0]} among them: it sees no "
                f"end of a {self.built.block_class.__name__}. Use parallel.leaf_modules=false."
            )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    @contextmanager
    def speaking(self, gather: Gather = "auto") -> Iterator[Speaker]:
        if self._run.parallel.zero_stage < 3:  # weights are whole on every rank
            with self.evaluating(), speaking(self.built, in_step=False) as speaker:
                yield speaker
            return
        if gather == "auto":
            parameters = self._parameters.values()
            share_bytes = sum(p.ds_numel * p.element_size() for p in parameters)  # type: ignore[attr-defined]
            gather = "once" if whole_weights_fit(self.world, share_bytes) else "per_token"
        if gather == "per_token":
            with self.evaluating(), speaking(self.built, in_step=True) as speaker:
                yield speaker
            return
        dtype = DTYPES[self._run.precision]
        twin = empty_twin(self.built, self.world.tensor_group, dtype, widen_bf16=self._widened)
        fill(twin, self._shares())
        with speaking(twin, in_step=False) as speaker:
            yield speaker

    def _shares(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This tensor-parallel rank's whole share of every parameter, as copies."""
        pending: dict[str, nn.Parameter] = {}
        num_bytes = 0
        for name, parameter in self._parameters.items():
            pending[name] = parameter
            num_bytes += parameter.ds_numel * parameter.element_size()  # type: ignore[attr-defined]
            if num_bytes >= _GATHERED_AT_ONCE_BYTES:
                yield from self._copies(pending)
                pending, num_bytes = {}, 0
        yield from self._copies(pending)

    def _copies(self, parameters: dict[str, nn.Parameter]) -> list[tuple[str, torch.Tensor]]:
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return [(name, parameter.detach().clone()) for name, parameter in parameters.items()]

    def weights(self, *, master: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        shares = ((name, self._gathered(p, master)) for name, p in self._parameters.items())
        yield from whole_weights(shares, self.built, self.world)

    def held_bytes(self) -> HeldBytes | None:
        if self._gradient_bytes is None:
            return None
        return zero_held(self._engine.optimizer, self._gradient_bytes)

    def state(self) -> RankState:
        """This rank's training state; its tensors are views that the next step changes."""
        return export_state(self._masters, self._parameters)

    def load_state(self, state: SavedState) -> None:
        """Go on from `state`. Collective: every rank calls it.

        Raises CheckpointError with every rank's reason, on all ranks, when one cannot read its pieces.
        """
        load_on_all_ranks(self._masters, self._parameters, state, self.world)
        if self._on_disk is not None:
            self._on_disk.write_back()
        self._taken_over.refresh()

    @contextmanager
    def _gathered(self, parameter: nn.Parameter, master: bool) -> Iterator[torch.Tensor]:
        """This tensor-parallel rank's whole share of a parameter."""
        if master:
            yield safe_get_full_fp32_param(parameter).detach()
            return
        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach()

    def _ask_divisions(self) -> dict[str, tuple[Division, ...]] | None:
        """How every tensor-parallel rank's parameters are divided. Collective: every rank calls it."""
        if isinstance(self._masters, StageThree):
            return None
        everybody = self.world.tensor_group.gather_objects(self._masters.divisions)
        return {name: tuple(one[name] for one in everybody) for name in self._parameters}

    def _check_active(self) -> None:
        """Stop when DeepSpeed did not give what was asked: a silent fallback would be a wrong claim."""
        asked, stage = self._run.parallel.zero_stage, self._engine.zero_optimization_stage()
        found = partitioning(
            self._engine.optimizer, list(self._parameters.values()), self.world.data_parallel
        )
        if stage != asked or found != expected_partitioning(asked):
            raise MegatuneError(
                f"asked for ZeRO stage {asked}; DeepSpeed runs stage {stage} with {found} in "
                f"{type(self._engine.optimizer).__name__}. This is a bug: please report it."
            )
