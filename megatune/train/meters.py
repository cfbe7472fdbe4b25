"""From what a step did to the line that is logged: rates, utilisation, memory; and what a run computes with."""

import resource
from dataclasses import dataclass

import torch

from megatune.engine.base import TrainingEngine
from megatune.model.build import BuiltModel
from megatune.model.compiled import runs_compiled
from megatune.plan.flops import StepFlops, step_flops
from megatune.plan.hardware import find_accelerator
from megatune.report.records import StepRecord
from megatune.train.step import StepResult


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What does not change from step to step."""

    built: BuiltModel
    gradient_checkpointing: bool
    num_devices: int
    peak_flops: float | None
    """Dense peak of one device; None for devices without a row in the hardware table."""

    def record(
        self, result: StepResult, *, step: int, epoch: float, learning_rate: float, seconds: float
    ) -> StepRecord:
        """The metrics line of one step."""
        flops = self._flops(result)
        return StepRecord(
            step=step,
            epoch=epoch,
            loss=result.loss if result.target_tokens else None,
            grad_norm=result.outcome.grad_norm,
            learning_rate=learning_rate,
            target_tokens=result.target_tokens,
            tokens=result.tokens,
            step_seconds=seconds,
            cpu_seconds=result.cpu_seconds,
            tokens_per_second=result.tokens / seconds,
            tokens_per_second_per_device=result.tokens / seconds / self.num_devices,
            model_flops=flops.model,
            mfu=self._utilisation(flops.model, seconds),
            mfu_causal=self._utilisation(flops.model_causal, seconds),
            hfu=self._utilisation(flops.hardware, seconds),
            peak_memory_bytes=max(result.peak_memory_bytes),
            skipped=result.outcome.skipped,
        )

    def _flops(self, result: StepResult) -> StepFlops:
        shape = self.built.shape
        return step_flops(
            num_matmul_params=self.built.num_matmul_params,
            num_head_params=self.built.num_head_params,
            num_layers=shape.num_layers,
            attention_width=shape.attention_width,
            tokens=result.tokens,
            target_tokens=result.target_tokens,
            squared_lengths=result.squared_lengths,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def _utilisation(self, flops: float, seconds: float) -> float | None:
        return None if self.peak_flops is None else flops / seconds / self.peak_flops / self.num_devices


def kernels_used(engine: TrainingEngine) -> dict[str, str]:
    """Which attention, loss and norms an engine really computes with: asked of it, not of the settings.

    Its optimizer stands in `engine.description`.
    """
    model = engine.built.model
    norms = sorted(
        {type(module).__name__ for module in model.modules() if "norm" in type(module).__name__.lower()}
    )
    return {
        "blocks": "compiled" if runs_compiled(model) else "as transformers has them",
        "attention": str(model.config._attn_implementation),
        "loss": "in chunks inside the head" if engine.chunked_loss else "from whole logits",
        "norm": ", ".join(norms) or "none",
    }


def device_name(device: torch.device) -> str:
    """The driver's name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense peak of `device` in bf16 or fp16; None in fp32 and for devices nobody has tabulated."""
    row = find_accelerator(device_name(device))
    return row.peak_bf16_flops if row is not None and dtype != torch.float32 else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this rank has held so far: allocated on a GPU, resident (mapped files included) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_peaks(device: torch.device) -> tuple[int | None, int]:
    """The most this rank has held so far: reserved by the allocator of a GPU (None without one), and resident bytes."""
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return reserved, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
