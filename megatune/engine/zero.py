"""The DeepSpeed engine: ZeRO-3 partitions over the data-parallel ranks of tensor-parallel shares."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param, set_z3_leaf_modules
from torch import nn

from megatune.config import Run
from megatune.engine.base import StepOutcome
from megatune.engine.dtypes import DTYPES
from megatune.engine.optimizers import make_optimizer, parameter_groups
from megatune.engine.state import RankState, SavedState, export_state, import_state, refresh_weights
from megatune.engine.world import World
from megatune.errors import CheckpointError, ConfigError, MegatuneError
from megatune.model.build import BuiltModel, build_model
from megatune.model.forward import TokenBatch, loss_of_batch, model_arguments
from megatune.model.shares import join_shares
from megatune.model.source import ModelSource


def _build(run: Run, source: ModelSource, world: World, ds_config: dict[str, Any]) -> BuiltModel:
    dtype = DTYPES[run.precision]

    def partition(module: nn.Module) -> None:
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=world.data_group,
            config_dict_or_path=ds_config,
            dtype=dtype,
            mpu=world,
        )

    return build_model(
        source,
        dtype=dtype,
        initialize=run.model.initialize,
        attn_implementation=run.model.attn_implementation,
        gradient_checkpointing=run.model.gradient_checkpointing is True,
        seed=run.train.seed,
        group=world.tensor_group,
        place=partition,
    )


def _check_precision(run: Run, world: World) -> None:
    """Raise ConfigError where DeepSpeed would refuse fp16, before any weight is read."""
    if run.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            [
                f"precision = fp16, but DeepSpeed does not train in fp16 on this device ({world.device}). "
                "Use precision=bf16, which needs no loss scale, or precision=fp32."
            ]
        )


class ZeroEngine:
    """Trains a model of `build_model` under DeepSpeed ZeRO stage 3."""

    def __init__(self, run: Run, source: ModelSource, world: World, ds_config: dict[str, Any]) -> None:
        self.world, self._run = world, run
        _check_precision(run, world)
        self.built = _build(run, source, world, ds_config)
        model = self.built.model
        if run.parallel.leaf_modules:
            set_z3_leaf_modules(model, [self.built.block_class])
        on_host = run.parallel.offload != "none"
        groups = parameter_groups(model.parameters(), run.train.weight_decay)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(groups, run.train, on_host=on_host),
            config=ds_config,
            mpu=world,
            dist_init_required=False,
        )
        self._engine.train()
        self._parameters = dict(model.named_parameters())
        self._check_active()

    @property
    def description(self) -> str:
        zero = type(self._engine.optimizer).__name__
        dtype = next(iter(self._parameters.values())).dtype
        offload = "" if self._run.parallel.offload == "none" else f", offload {self._run.parallel.offload}"
        return (
            f"DeepSpeed {deepspeed.__version__} {zero} (stage {self._engine.zero_optimization_stage()}) over "
            f"dp={self.world.data_parallel} x tp={self.world.tensor_parallel}, {dtype} weights, "
            f"{type(self._engine.basic_optimizer).__name__} on fp32 masters{offload}, device {self.world.device}"
        )

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        return loss_of_batch(self._engine, self.built, batch, self.world.device)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        device = self.world.device
        arguments = model_arguments(self.built.model, input_ids.to(device), position_ids.to(device))
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
        skipped_before = self._engine.skipped_steps
        with self._overflowing() if leave_out else nullcontext():
            self._engine.step()
        skipped = self._engine.skipped_steps > skipped_before
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(grad_norm=None if skipped or norm is None else float(norm), skipped=skipped)

    @contextmanager
    def _overflowing(self) -> Iterator[None]:
        """Have DeepSpeed take the gradients for overflowed, which it clears without touching anything else."""
        optimizer = self._engine.optimizer
        check = optimizer._overflow_check_and_loss_scale_update

        def find_overflow(*args: Any, **kwargs: Any) -> bool:
            check(*args, **kwargs)
            optimizer.overflow = True
            return True

        optimizer._overflow_check_and_loss_scale_update = find_overflow
        try:
            yield
        finally:
            del optimizer._overflow_check_and_loss_scale_update

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    def weights(self, *, master: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            with self._gathered(parameter, master) as local:
                whole = self._join_shares(name, local)
            yield (
                name,
                whole.t().contiguous() if whole.dim() == 2 and name in self.built.transposed else whole,
            )

    def state(self) -> RankState:
        """This rank's training state; its tensors are views that the next step changes."""
        return export_state(self._engine.optimizer, self._parameters)

    def load_state(self, state: SavedState) -> None:
        """Go on from `state`. Collective: every rank calls it.

        Raises CheckpointError with every rank's reason, on all ranks, when one cannot read its pieces.
        """
        problem = None
        try:
            import_state(self._engine.optimizer, self._parameters, state)
        except CheckpointError as error:
            problem = str(error)
        problems = sorted(set(filter(None, self.world.gather_objects(problem))))
        if problems:
            raise CheckpointError(" ".join(problems))
        refresh_weights(self._engine.optimizer)

    @contextmanager
    def _gathered(self, parameter: nn.Parameter, master: bool) -> Iterator[torch.Tensor]:
        """This tensor-parallel rank's whole share of a parameter."""
        if master:
            yield safe_get_full_fp32_param(parameter).detach()
            return
        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach()

    def _join_shares(self, name: str, local: torch.Tensor) -> torch.Tensor:
        """The shares of rank 0's tensor-parallel group as one tensor on rank 0; an empty one elsewhere."""
        if self.world.data_rank != 0:
            return local.new_empty(0, device="cpu")  # all groups hold the same
        cut, group = self.built.cuts.get(name), self.world.tensor_group
        if cut is not None and group.size > 1:
            return join_shares(local, cut, group)
        return local.to("cpu", copy=True) if self.world.is_first else local.new_empty(0, device="cpu")

    def _check_active(self) -> None:
        """Stop when DeepSpeed did not give what was asked: a silent fallback would be a wrong claim."""
        stage = self._engine.zero_optimization_stage()
        partitioned = sum(hasattr(parameter, "ds_id") for parameter in self._parameters.values())
        if stage != 3 or partitioned != len(self._parameters):
            raise MegatuneError(
                f"asked for ZeRO stage 3; DeepSpeed runs stage {stage} with {partitioned} of "
                f"{len(self._parameters)} parameters partitioned. This is a bug: please report it."
            )
