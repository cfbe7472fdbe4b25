"""A step or a split without a single target token has no loss: unknown, not zero and not NaN."""

from pathlib import Path

import pytest
import torch
from tiny_models import write_tiny_model

from megatune.engine.base import StepOutcome
from megatune.engine.own_time import StepTimes
from megatune.model.build import build_model
from megatune.model.source import open_source
from megatune.report.progress import step_line
from megatune.report.records import EvalRecord, StepRecord, to_object
from megatune.report.tensorboard import scalars_of
from megatune.train.meters import Meter
from megatune.train.step import StepResult


@pytest.fixture(scope="module")
def record(session_folder: Path) -> StepRecord:
    source = open_source(write_tiny_model("gpt2", session_folder))
    meter = Meter(
        built=build_model(source, dtype=torch.float32),
        gradient_checkpointing=False,
        num_devices=1,
        peak_flops=None,
    )
    result = StepResult(
        loss=0.0,
        target_tokens=0,
        tokens=10,
        squared_lengths=100,
        outcome=StepOutcome(grad_norm=0.0, skipped=False),
        cpu_seconds=0.5,
        stop_asked=False,
        saves_ready=True,
        peak_memory_bytes=[1],
        times=[StepTimes(0.1, 0.1)],
    )
    return meter.record(result, step=1, epoch=0.1, learning_rate=0.1, seconds=1.0)


def test_a_step_without_targets_has_no_loss_in_file_curve_and_line(record: StepRecord) -> None:
    written = to_object(record)
    assert written["loss"] is None
    assert "nonfinite" not in written
    assert "train/loss" not in scalars_of(record)
    assert "loss n/a" in step_line(record, 5, None)


def test_an_evaluation_without_targets_has_no_point_on_a_curve() -> None:
    record = EvalRecord(step=1, split="validation", loss=None, perplexity=None, target_tokens=0, seconds=1.0)

    assert scalars_of(record) == {}
