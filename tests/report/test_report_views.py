import io
import json
import math
import os
import pty
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatune.errors import ConfigError
from megatune.report.curves import curves, draw_curves
from megatune.report.metrics import MetricsWriter
from megatune.report.progress import Progress, format_eta, step_line
from megatune.report.records import EvalRecord, ResumeRecord, RunRecord, StepRecord, StopRecord, to_object
from megatune.report.summary import summarise, summarise_entries, summary_tables
from megatune.report.tables import format_cell, render_table, show, to_json
from megatune.report.tensorboard import TensorBoardSink

STEP = StepRecord(
    step=12,
    epoch=0.5,
    loss=2.34561,
    grad_norm=1.2341,
    learning_rate=1e-5,
    target_tokens=1000,
    tokens=1200,
    step_seconds=2.0,
    tokens_per_second=1234.4,
    tokens_per_second_per_device=617.2,
    model_flops=None,
    mfu=None,
    mfu_causal=None,
    hfu=None,
    peak_memory_bytes=int(2.91 * 2**30),
)
EVAL = EvalRecord(step=0, split="validation", loss=2.5, perplexity=12.2, target_tokens=50, seconds=1.0)


def test_a_plain_line_has_the_fields_that_users_grep():
    assert step_line(STEP, 100, 192.0) == (
        "step 12/100 loss 2.3456 grad_norm 1.234 lr 1.00e-05 tok/s 1234 tok/s/dev 617 MFU n/a "
        "mem 2.91 GiB eta 0:03:12"
    )


def test_a_skipped_step_and_an_unknown_norm_are_shown_as_such():
    line = step_line(replace(STEP, skipped=True, grad_norm=None, mfu=0.418), 100, None)
    assert "grad_norm n/a" in line
    assert "MFU 41.8%" in line
    assert line.endswith("eta n/a skipped")


def test_a_long_run_has_an_eta_in_hours():
    assert format_eta(100 * 3600 + 61) == "100:01:01"


def test_without_a_terminal_each_step_is_one_plain_line():
    out = io.StringIO()
    with Progress(14, stream=out) as progress:
        progress.update(STEP)
        progress.note("eval loss [2.1]")
        progress.update(replace(STEP, step=13, step_seconds=4.0))
    lines = out.getvalue().splitlines()
    assert [line.split()[0:2] for line in lines] == [["step", "12/14"], ["eval", "loss"], ["step", "13/14"]]
    assert lines[0].endswith("eta 0:00:04")  # 2 steps left, 2 s each
    assert lines[2].endswith("eta 0:00:03")  # 1 step left, the median of 2 s and 4 s


def test_the_log_has_plain_lines_while_the_terminal_has_a_bar(tmp_path):
    shown = on_a_terminal(tmp_path)
    log = (tmp_path / "log").read_text().splitlines()
    assert "12/100" in shown
    assert "loss 2.3456" in shown
    assert "\x1b[" in shown
    assert log[0].startswith("step 12/100 loss 2.3456 grad_norm 1.234")
    assert log[1] == "a note"
    assert "\x1b" not in "".join(log)


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    shown = on_a_terminal(tmp_path, TERM="dumb")
    assert "step 12/100 loss 2.3456" in shown
    assert "\x1b[" not in shown


def test_no_color_is_honoured_on_a_terminal(tmp_path):
    shown = on_a_terminal(tmp_path, NO_COLOR="1")
    assert "loss 2.3456" in shown
    assert "\x1b[3" not in shown.replace("\x1b[?", "")  # no foreground colour


@pytest.mark.parametrize("columns", [60, 200])
def test_what_matters_most_stays_on_a_narrow_terminal(tmp_path, columns):
    shown = on_a_terminal(tmp_path, COLUMNS=str(columns))
    assert "12/100" in shown
    assert "loss 2.3456" in shown
    assert "eta 0:02:56" in shown
    assert ("lr 1.00e-05" in shown) == (columns == 200)


def on_a_terminal(folder: Path, **environment: str) -> str:
    """What a step and a note look like on a pseudo-terminal."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_report_views import STEP
from megatune.report.progress import Progress
with open({str(folder / "log")!r}, "w") as log, Progress(100, log=log) as progress:
    progress.update(STEP)
    progress.note("a note")
"""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    pieces: list[bytes] = []
    reader = threading.Thread(target=drain, args=(ours, pieces))
    reader.start()
    _, errors = process.communicate(timeout=60)
    reader.join()
    os.close(ours)
    assert process.returncode == 0, errors.decode()
    return b"".join(pieces).decode()


def drain(fd: int, pieces: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # how a pseudo-terminal ends
            return
        pieces.append(piece)


def read_events(folder: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [event for file in sorted(folder.iterdir()) for event in LegacyEventFileLoader(str(file)).Load()]


def test_tensorboard_reads_back_the_numbers_of_steps_and_evaluations(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(RunRecord(model="m"))
    sink.write(STEP)
    sink.write(EVAL)
    sink.close()
    points = {
        (value.tag, event.step): value.simple_value
        for event in read_events(tmp_path)
        for value in event.summary.value
    }
    assert points[("train/loss", 12)] == pytest.approx(2.34561)
    assert points[("eval/validation_perplexity", 0)] == pytest.approx(12.2)
    assert points[("speed/tokens_per_second", 12)] == pytest.approx(1234.4)
    assert not [tag for tag, _ in points if "mfu" in tag]  # unknown: no point, not a zero


def test_after_a_resume_tensorboard_drops_the_steps_that_were_lost(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardSink(tmp_path)
    for step in (1, 2, 3):
        first.write(replace(STEP, step=step, loss=float(step)))
    first.close()
    second = TensorBoardSink(tmp_path)
    second.write(ResumeRecord(step=1, path="p"))
    second.write(replace(STEP, step=2, loss=20.0))
    second.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(point.step, point.value) for point in accumulator.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]


def test_the_report_loads_neither_torch_nor_tensorboard_before_it_is_used():
    script = """
import sys
import megatune.report.progress, megatune.report.summary, megatune.report.tables
import megatune.report.metrics, megatune.report.tensorboard
print(sorted({"torch", "transformers", "datasets", "tensorboard", "tensorflow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensorboard_is_written_without_torch_or_tensorflow(tmp_path):
    script = f"""
import sys
from pathlib import Path
from megatune.report.tensorboard import TensorBoardSink
TensorBoardSink(Path({str(tmp_path)!r})).close()
print(sorted({{"torch", "tensorflow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_table_shows_unknown_as_na_and_brackets_as_they_are():
    out = io.StringIO()
    rows = [{"name": "[bold]x[/bold]", "speed": 1234.5678}, {"name": "y", "fits": True}]
    show({"rows": rows}, render_table(rows), as_json=False, stream=out)
    shown = out.getvalue()
    assert "[bold]x[/bold]" in shown
    assert "1234.6" in shown
    assert shown.count("n/a") == 2
    assert "yes" in shown


def test_a_table_in_a_file_is_not_cut_at_the_width_of_a_terminal():
    out = io.StringIO()
    show({}, render_table([{"reason": "x" * 150}]), as_json=False, stream=out)
    assert "x" * 150 in out.getvalue()


def test_columns_are_picked_and_ordered():
    table = render_table([{"a": 1, "b": 2, "c": 3}], columns=["c", "a"])
    assert [str(column.header) for column in table.columns] == ["c", "a"]


def test_json_is_one_valid_object_and_nothing_else():
    out = io.StringIO()
    show({"loss": math.nan, "path": Path("/x")}, "a table", as_json=True, stream=out)
    assert json.loads(out.getvalue(), parse_constant=pytest.fail) == {
        "loss": None,
        "path": "/x",
        "nonfinite": ["loss"],
    }
    assert to_json({"a": 1}).count("{") == 1


@pytest.mark.parametrize(("value", "cell"), [(None, "n/a"), (False, "no"), (3, "3"), (1e-5, "1e-05")])
def test_cells(value, cell):
    assert format_cell(value) == cell


def test_the_summary_compares_before_and_after_and_counts_honestly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(RunRecord(model="m"))
        writer.write(EVAL)
        for step, speed in ((1, 10.0), (2, 100.0), (3, 120.0)):
            writer.write(
                replace(STEP, step=step, tokens_per_second=speed, skipped=step == 2, loss=4.0 - step)
            )
        writer.write(replace(EVAL, step=3, loss=1.0, perplexity=2.7))
        writer.write(
            StopRecord(
                step=3, reason="done", exit_code=0, seconds=9.0, peak_memory_bytes_by_rank=(2**30, 4 * 2**30)
            )
        )
    summary = summarise(path)
    assert (summary.steps, summary.skipped_steps, summary.target_tokens) == (3, 1, 3000)
    assert summary.median_tokens_per_second == 100.0
    assert summary.peak_memory_bytes == 4 * 2**30
    assert summary.peak_memory_bytes_by_rank == (2**30, 4 * 2**30)
    (split,) = summary.splits
    assert (split.loss_before, split.loss_after, split.perplexity_after) == (2.5, 1.0, 2.7)
    out = io.StringIO()
    show(summary.as_object(), *summary_tables(summary), as_json=False, stream=out)
    for text in ("12.2", "2.7", "1.00 GiB, 4.00 GiB", "3.0000 -> 1.0000", "done"):
        assert text in out.getvalue()


def test_a_run_without_a_first_evaluation_has_no_before():
    summary = summarise_entries([to_object(STEP), to_object(replace(EVAL, step=12))])
    assert summary.splits[0].loss_before is None
    assert summary.splits[0].loss_after == 2.5


def test_the_summary_of_a_run_that_did_not_take_a_step_is_unknown_not_zero():
    summary = summarise_entries([])
    assert summary.last_loss is None
    assert summary.median_tokens_per_second is None
    assert summary.peak_memory_bytes is None
    assert "n/a" in to_text(summary_tables(summary))


def test_a_loss_that_was_not_finite_does_not_break_the_summary():
    summary = summarise_entries([to_object(replace(STEP, loss=math.nan, tokens_per_second=math.inf))])
    assert summary.last_loss is None
    assert "n/a -> n/a" in to_text(summary_tables(summary))


def to_text(tables: list[Any]) -> str:
    out = io.StringIO()
    show({}, *tables, as_json=False, stream=out)
    return out.getvalue()


def scored(step: int, split: str, f1: float | None) -> dict[str, Any]:
    metrics = {} if f1 is None else {"f1": f1}
    intervals = {} if f1 is None else {"f1": (f1 - 0.1, f1 + 0.1)}
    return to_object(replace(EVAL, step=step, split=split, metrics=metrics, intervals=intervals))


def test_the_summary_has_every_score_before_and_after_with_its_interval():
    entries = [scored(0, "test", 0.25), scored(5, "test", 0.5), scored(9, "test", 0.75)]

    (split,) = summarise_entries(entries).splits

    assert (split.metrics["f1"].before, split.metrics["f1"].after) == (0.25, 0.75)
    table, _ = summary_tables(summarise_entries(entries))
    out = io.StringIO()
    show({}, table, as_json=False, stream=out)
    (row,) = [line for line in out.getvalue().splitlines() if " f1 " in line]
    assert "0.25 (0.15 to 0.35)" in row
    assert "0.75 (0.65 to 0.85)" in row


def test_curves_have_a_line_a_split_and_the_training_loss(tmp_path):
    entries = [
        scored(0, "test", None),
        to_object(STEP),
        scored(12, "test", 0.5),
        scored(12, "validation", 0.4),
    ]

    assert curves(entries)["loss"]["train"] == [(12, STEP.loss)]
    assert curves(entries)["f1"] == {"test": [(12, 0.5)], "validation": [(12, 0.4)]}

    path = tmp_path / "curves.svg"
    assert draw_curves(entries, path) == 3  # loss, perplexity, f1
    assert path.read_text().startswith("<?xml")
    assert draw_curves([], tmp_path / "nothing.png") == 0
    with pytest.raises(ConfigError, match=r"curves\.txt.*\.png, \.svg, \.pdf"):
        draw_curves(entries, tmp_path / "curves.txt")


def test_the_end_of_a_run_names_the_command_that_draws_its_curves(tmp_path, capsys, monkeypatch):
    from megatune.cli import main
    from megatune.cli.report import report_run

    run = tmp_path / "a run"
    run.mkdir()
    writer = MetricsWriter(run / "metrics.jsonl")
    for record in (EVAL, STEP):
        writer.write(record)
    writer.close()

    report_run(run, as_json=False)  # what `megatune train` ends with

    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("curves: "))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(line.removeprefix("curves: ")))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "curves: " not in capsys.readouterr().out
