import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from megatune.errors import MegatuneError
from megatune.report.metrics import MetricsWriter, read_metrics
from megatune.report.records import (
    EvalRecord,
    ResumeRecord,
    RunRecord,
    SaveRecord,
    StepRecord,
    StopRecord,
    to_line,
    to_object,
)

STEP = StepRecord(
    step=1,
    epoch=0.1,
    loss=2.5,
    grad_norm=1.25,
    learning_rate=1e-5,
    target_tokens=100,
    tokens=128,
    step_seconds=0.5,
    tokens_per_second=256.0,
    tokens_per_second_per_device=128.0,
    model_flops=1e12,
    mfu=None,
    mfu_causal=None,
    hfu=None,
    peak_memory_bytes=2**30,
)
EVAL = EvalRecord(step=0, split="validation", loss=2.0, perplexity=7.4, target_tokens=50, seconds=1.0)
CONTRACT = (
    "step epoch loss grad_norm learning_rate target_tokens tokens step_seconds tokens_per_second "
    "tokens_per_second_per_device model_flops mfu mfu_causal hfu peak_memory_bytes cpu_seconds skipped event "
    "schema time"
)


def events(path: Path) -> list[tuple[str, int | None]]:
    return [(entry["event"], entry.get("step")) for entry in read_metrics(path)]


def test_a_step_line_has_every_promised_field_and_a_utc_time():
    line = to_object(STEP, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert set(line) == set(CONTRACT.split())
    assert line["time"] == "2026-01-02T03:04:05.000Z"
    assert line["event"] == "step"


def test_numbers_that_json_cannot_hold_become_null_and_are_named():
    line = to_line(replace(STEP, loss=math.nan, grad_norm=math.inf))
    entry = json.loads(line, parse_constant=pytest.fail)
    assert (entry["loss"], entry["grad_norm"]) == (None, None)
    assert entry["nonfinite"] == ["loss", "grad_norm"]


def test_nonfinite_numbers_inside_details_are_found():
    entry = json.loads(to_line(RunRecord(model="m", details={"speeds": [1.0, -math.inf]})))
    assert entry["details"] == {"speeds": [1.0, None]}
    assert entry["nonfinite"] == ["details.speeds.1"]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        writer.write(STEP)
        assert events(tmp_path / "m.jsonl") == [("step", 1)]


def test_a_second_start_appends(tmp_path):
    for step in (1, 2):
        with MetricsWriter(tmp_path / "m.jsonl") as writer:
            writer.write(replace(STEP, step=step))
    assert events(tmp_path / "m.jsonl") == [("step", 1), ("step", 2)]


@pytest.mark.parametrize("torn", [b'{"event": "st', b"\0\0\0\0", b'{"event": "step"}'])
def test_an_unfinished_last_line_of_a_killed_run_is_passed_over_and_then_removed(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    path.write_bytes(to_line(STEP).encode() + torn)
    assert events(path) == [("step", 1)]
    with MetricsWriter(path) as writer:
        writer.write(replace(STEP, step=2))
    assert events(path) == [("step", 1), ("step", 2)]


def test_a_lost_save_costs_what_training_waited_for_it_and_one_that_ended_late_stays(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(RunRecord(model="m"))
        for step in (1, 2, 3):
            writer.write(replace(STEP, step=step, step_seconds=10.0))
        writer.write(SaveRecord(step=1, path="p", seconds=19.0, blocked_seconds=1.0))
        writer.write(SaveRecord(step=2, path="p", seconds=18.0, blocked_seconds=2.0))
        lost = writer.cut_back(1)

    assert events(path) == [("run", None), ("step", 1), ("save", 1)]
    assert lost is not None
    assert (lost.steps, lost.seconds) == (2, 22.0)


def test_cutting_back_removes_what_lies_beyond_the_step_and_keeps_what_happened(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(RunRecord(model="m"))
        for step in (1, 2, 3):
            writer.write(replace(STEP, step=step))
            writer.write(replace(EVAL, step=step))
            writer.write(SaveRecord(step=step, path="p", seconds=1.0))
        writer.write(StopRecord(step=3, reason="killed", exit_code=1, seconds=9.0))
        writer.cut_back(2)
        writer.write(ResumeRecord(step=2, path="p"))
        writer.write(replace(STEP, step=3))
    assert events(path) == [
        ("run", None),
        *[(event, step) for step in (1, 2) for event in ("step", "eval", "save")],
        ("stop", 3),
        ("resume", 2),
        ("step", 3),
    ]


def test_cutting_back_keeps_each_kept_line_as_it_was(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(replace(STEP, loss=math.nan, learning_rate=1 / 3))
        before = path.read_text()
        writer.cut_back(1)
    assert path.read_text() == before


def test_a_full_disk_names_the_file_and_leaves_no_half_line(tmp_path):
    path = tmp_path / "m.jsonl"
    script = f"""
import resource, signal
from pathlib import Path
from megatune.report.metrics import MetricsWriter
from megatune.report.records import SaveRecord
writer = MetricsWriter(Path({str(path)!r}))
writer.write(SaveRecord(step=1, path="p", seconds=1.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    writer.write(SaveRecord(step=2, path="p" * 300, seconds=1.0))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert str(path) in done.stdout
    assert path.read_text().endswith("}\n")
    assert events(path) == [("save", 1)]


def test_a_killed_writer_loses_no_line(tmp_path):
    path = tmp_path / "m.jsonl"
    script = f"""
import os, signal
from pathlib import Path
from megatune.report.metrics import MetricsWriter
from megatune.report.records import SaveRecord
writer = MetricsWriter(Path({str(path)!r}))
for step in range(50):
    writer.write(SaveRecord(step=step, path="p", seconds=1.0))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert [step for _, step in events(path)] == list(range(50))


@pytest.mark.parametrize("broken", [b"{oops}", b"[1]", b'{"loss": NaN}'])
def test_a_broken_line_in_the_middle_is_told_with_its_number(tmp_path, broken):
    path = tmp_path / "m.jsonl"
    path.write_bytes(to_line(STEP).encode() + broken + b"\n" + to_line(STEP).encode())
    with pytest.raises(MegatuneError, match=r"m\.jsonl, line 2"):
        read_metrics(path)
