"""The engine of a run: which one its ZeRO stage asks for."""

from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from torch import nn

from megatune.config import Run
from megatune.engine.base import TrainingEngine
from megatune.engine.dtypes import DTYPES
from megatune.engine.kernels import widens_bf16
from megatune.engine.plain import PlainEngine
from megatune.engine.world import World
from megatune.engine.zero import ZeroEngine, refuse_precision
from megatune.model.build import build_model
from megatune.model.compiled import compile_blocks
from megatune.model.forward import make_head_loss
from megatune.model.source import ModelSource


def make_engine(run: Run, source: ModelSource, world: World, ds_config: dict[str, Any]) -> TrainingEngine:
    """DeepSpeed's ZeRO for stages 1 to 3, plain torch for stage 0. Collective: every rank calls it.

    DeepSpeed's own stage 0 adds the gradients of micro-batches in bf16, and tells no gradient norm in fp32.
    """
    if run.parallel.zero_stage > 0:
        return ZeroEngine(run, source, world, ds_config)
    refuse_precision(run, world)

    def place(module: nn.Module) -> None:
        module.to(world.device)

    widened = widens_bf16(run.precision, world)
    built = build_model(
        source,
        dtype=DTYPES[run.precision],
        initialize=run.model.initialize,
        attn_implementation=run.model.attn_implementation,
        gradient_checkpointing=run.model.gradient_checkpointing is True,
        seed=run.train.seed,
        group=world.tensor_group,
        place=place,
        widen_bf16=widened,
    )
    if run.model.compile:
        compile_blocks(built.model, built.block_class, world.tensor_group)
    head_loss = make_head_loss(built, widen=widened)
    return PlainEngine(built, world, run.train, loss_scaler=_loss_scaler(ds_config), head_loss=head_loss)


def _loss_scaler(ds_config: dict[str, Any]) -> DynamicLossScaler | None:
    """DeepSpeed's own, with the settings that its ZeRO optimizers would get."""
    fp16 = ds_config.get("fp16", {})
    if not fp16.get("enabled"):
        return None
    return DynamicLossScaler(
        init_scale=2.0 ** fp16["initial_scale_power"],
        scale_window=fp16["loss_scale_window"],
        min_scale=fp16.get("min_loss_scale", 1),
        delayed_shift=fp16.get("hysteresis", 2),
        consecutive_hysteresis=fp16.get("consecutive_hysteresis", False),
        raise_error_at_min_scale=False,
        dtype=DTYPES["fp16"],
    )
