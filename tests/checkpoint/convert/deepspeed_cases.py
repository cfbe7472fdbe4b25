"""What ranks do in the tests of conversion: train a Hugging Face model with DeepSpeed alone, save, load."""

from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.nn.functional as F
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine
from state_cases import load, save
from transformers import AutoModelForCausalLM

LEARNING_RATE = 0.01
ADAM = {"train": {"optimizer": "adamw", "learning_rate": LEARNING_RATE, "weight_decay": 0.0}}

State = dict[str, dict[str, np.ndarray]]
"""Kind -> parameter -> whole tensor, in Hugging Face's orientation."""


def bare_engine(folder: str, *, frozen: str | None = None, **changes: Any) -> Any:
    """`deepspeed.initialize` on the model folder with torch's AdamW, as scripts without megatune do."""
    world = world_of(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is None or frozen not in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    config = {
        "train_micro_batch_size_per_gpu": SEQUENCES // world.size,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        **changes,
        "zero_optimization": {"stage": 3, **changes.get("zero_optimization", {})},
    }
    # `mpu` only because these processes also run engines with tensor parallelism, which DeepSpeed remembers.
    return deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, mpu=world, dist_init_required=False
    )[0]


def bare_steps(engine: Any, steps: list[Any]) -> list[float]:
    """Mean loss over the target tokens of all ranks, step by step."""
    world, losses = world_of(1), []
    rows = SEQUENCES // world.size
    for step in steps:
        part = slice(world.rank * rows, (world.rank + 1) * rows)
        logits = engine(input_ids=step.input_ids[part], use_cache=False).logits
        labels = step.labels[part].flatten()
        total = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=-100, reduction="sum")
        share = total / (step.labels != -100).sum()
        engine.backward(share * world.size)  # DeepSpeed averages over the ranks
        engine.step()
        losses.append(world.sum_over_data(share.detach().clone()).item())
    return losses


def state_of(engine: Any) -> State:
    """The fp32 weights and Adam's moments, gathered from all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found: State = {"weight": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            found["weight"][name] = safe_get_full_fp32_param(parameter).detach().numpy().copy()
            for kind in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, kind)
                found[kind][name] = whole.detach().numpy().copy()
    return found


def train_bare(
    folder: str, out: str, frozen: str | None = None, changes: dict[str, Any] | None = None
) -> tuple[State, list[float]]:
    """Two steps, a save into `out`, two more: the state at the save, and the losses after it."""
    engine = bare_engine(folder, frozen=frozen, **(changes or {}))
    steps = batches(4)
    bare_steps(engine, steps[:2])
    engine.save_checkpoint(out)
    return state_of(engine), bare_steps(engine, steps[2:])


def go_on(folder: str, tp: int, converted: str) -> list[float]:
    """The losses of megatune's steps 3 and 4 from a converted checkpoint."""
    world = world_of(tp)
    engine = zero_engine(tiny_run(folder, tp, **ADAM), world, micro=SEQUENCES // world.data_parallel)
    load(engine, Path(converted))
    return run_steps(engine, batches(4)[2:], accumulation=1, learning_rate=LEARNING_RATE)[0]


def train_and_save(folder: str, tp: int, checkpoints: str) -> tuple[str, list[float]]:
    """Two steps of megatune, a save, two more: the checkpoint, and the losses after it."""
    world = world_of(tp)
    engine = zero_engine(tiny_run(folder, tp, **ADAM), world, micro=SEQUENCES // world.data_parallel)
    steps = batches(4)
    run_steps(engine, steps[:2], accumulation=1, learning_rate=LEARNING_RATE)
    saved = save(engine, Path(checkpoints), 2)
    return str(saved), run_steps(engine, steps[2:], accumulation=1, learning_rate=LEARNING_RATE)[0]


def load_universal(folder: str, out: str) -> tuple[State, list[float], int]:
    """A bare engine loads a universal checkpoint: its state, its losses of steps 3 and 4, its step."""
    engine = bare_engine(folder, checkpoint={"load_universal": True})
    path, _ = engine.load_checkpoint(out)
    assert path is not None
    step = engine.global_steps
    return state_of(engine), bare_steps(engine, batches(4)[2:]), step
