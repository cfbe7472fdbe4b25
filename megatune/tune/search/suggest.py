"""`megatune search --suggest`: learning rate and batch by rule, and a range test of the run itself."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.config import LoadedRun, load_run
from megatune.errors import ConfigError, MegatuneError
from megatune.files import write_text_atomic
from megatune.launch.digest import digest_run
from megatune.launch.run_folder import RunFolder
from megatune.plan.model_config import read_model_config
from megatune.plan.weights import count_model
from megatune.report.figures import save_figure
from megatune.report.metrics import read_metrics
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.range_test import RangeResult, has_broken, judge_range
from megatune.tune.search.rules import batch_by_rule, rate_by_rule
from megatune.tune.trial import StopSignals, last_lines, measuring_overrides, run_trial

HIGHEST_RATE = 0.1
"""Where a range test ends: no language model takes more with AdamW."""
_SPREAD = 4.0
"""The space that is written reaches so many times below and above the suggested rate."""
_USER_ERROR = 2
_FEWEST_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to begin with, and where that comes from."""

    num_params: int
    num_rows: int
    epochs: float
    rule_rate: float
    rule_batch: int
    tested: RangeResult | None
    """None where no range test was asked for."""

    @property
    def learning_rate(self) -> float:
        """The rule's, kept below what the range test bore."""
        found = self.tested.suggested_rate if self.tested else None
        return self.rule_rate if found is None else min(self.rule_rate, found)

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "num_params": self.num_params,
            "num_rows": self.num_rows,
            "epochs": self.epochs,
            "by_rule": {"learning_rate": self.rule_rate, "global_batch_size": self.rule_batch},
            "range_test": None if self.tested is None else self.tested.as_object(),
            "learning_rate": self.learning_rate,
            "global_batch_size": self.rule_batch,
        }

    def space(self) -> str:
        """A space file for `--space`: the rate around the suggested one, the batch beside the rule's."""
        low, high = (float(f"{self.learning_rate * factor:.1e}") for factor in (1 / _SPREAD, _SPREAD))
        batches = [size for size in (self.rule_batch // 2, self.rule_batch, self.rule_batch * 2) if size]
        return (
            "# Written by `megatune search --suggest`: a space around what it suggests.\n"
            f"train.learning_rate: {{low: {low:.1e}, high: {high:.1e}, log: true}}\n"
            f"train.global_batch_size: {batches}\n"
        )


def suggest(
    run_file: Path, overrides: Sequence[str], folder: SearchFolder, num_steps: int, stop: StopSignals
) -> Suggestion | None:
    """Read the run's model and data, and test rates for `num_steps` steps (0: do not). None when stopped before.

    Raises ConfigError for a run that cannot be, MegatuneError for a test that failed.
    """
    if num_steps and num_steps < _FEWEST_STEPS:
        raise ConfigError(
            [f"--range-steps is {num_steps}; it must be {_FEWEST_STEPS} or more, or 0 for no range test."],
            source="megatune search",
        )
    loaded = load_run(run_file, [*overrides, "data.validation=null", "evaluate=null"])
    folder.create()
    num_params = count_model(read_model_config(loaded.run)).num_params
    num_rows = _count_rows(loaded, folder)
    tested = None
    if num_steps:
        tested = _test_rates(run_file, overrides, folder, num_steps, stop)
        if tested is None:
            return None
    train = loaded.run.train
    return Suggestion(
        num_params=num_params,
        num_rows=num_rows,
        epochs=train.num_train_epochs,
        rule_rate=rate_by_rule(num_params),
        rule_batch=batch_by_rule(num_rows, train.num_train_epochs),
        tested=tested,
    )


def write_suggestion(folder: SearchFolder, found: Suggestion) -> Path | None:
    """Write suggest.json, space.yaml and, after a range test, its picture, whose path is returned."""
    write_text_atomic(folder.path / "suggest.json", json.dumps(found.as_object(), indent=1) + "\n")
    write_text_atomic(folder.path / "space.yaml", found.space())
    if found.tested is None:
        return None
    picture = folder.path / "range-test.png"
    _draw(found.tested, found, picture)
    return picture


def _count_rows(loaded: LoadedRun, folder: SearchFolder) -> int:
    """Rows as the optimizer sees them: after packing. Prepares the data, where that was not done."""
    from megatune.train.inputs import prepare_inputs

    return prepare_inputs(loaded.run, RunFolder(folder.path)).train.num_rows


def _test_rates(
    run_file: Path, overrides: Sequence[str], folder: SearchFolder, num_steps: int, stop: StopSignals
) -> RangeResult | None:
    run = RunFolder(folder.path / "range-test")
    shutil.rmtree(run.path, ignore_errors=True)
    run.create()
    run.share_prepared(folder.prepared)
    log = run.path / "train.log"
    given = [
        *overrides,
        *measuring_overrides(run, num_steps),
        "train.lr_scheduler_type=range_test",
        f"train.learning_rate={HIGHEST_RATE}",
        "health.on_nonfinite=stop",
    ]
    end = run_trial([str(run_file), *given], log=log, watch=lambda: has_broken(_points(run)[1]), stop=stop)
    if end.ended_by == "stop":
        return None
    if end.exit_code == _USER_ERROR:
        raise ConfigError([f"the range test was refused:\n{last_lines(log)}"], source="megatune search")
    rates, losses = _points(run)
    if not any(loss is not None for loss in losses):
        raise MegatuneError(f"the range test did not train: {digest_run(run).text}\nIts log: {log}")
    return judge_range(rates, losses)


def _points(run: RunFolder) -> tuple[list[float], list[float | None]]:
    """Rate and loss of each step so far."""
    if not run.metrics.is_file():
        return [], []
    steps = [entry for entry in read_metrics(run.metrics) if entry["event"] == "step"]
    return [step["learning_rate"] for step in steps], [step["loss"] for step in steps]


def _draw(tested: RangeResult, found: Suggestion, path: Path) -> None:
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    plot = figure.subplots()
    known = [(rate, loss) for rate, loss in zip(tested.rates, tested.losses, strict=True) if loss is not None]
    plot.plot(*zip(*known, strict=True), ".", alpha=0.4, label="loss of a step")
    plot.plot(tested.rates[: len(tested.smoothed)], tested.smoothed, label="smoothed")
    marks = {
        "by rule": found.rule_rate,
        "range test": tested.suggested_rate,
        "broke down": tested.broken_rate,
    }
    for style, (name, rate) in zip(("--", "-", ":"), marks.items(), strict=True):
        if rate is not None:
            plot.axvline(rate, linestyle=style, color="0.4", label=f"{name}: {rate:.1e}")
    plot.set_xscale("log")
    plot.set_ylim(top=min(max(loss for _, loss in known), 2 * max(tested.smoothed[0], min(tested.smoothed))))
    plot.set_xlabel("learning rate")
    plot.set_ylabel("training loss (nats a token)")
    plot.legend(fontsize=8)
    save_figure(figure, path)
