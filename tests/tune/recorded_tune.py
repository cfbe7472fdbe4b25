"""A tune that is replayed: candidates of a real run file, and trials that end as a table says."""

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from megatune.tune.layouts.begin import TuneOptions, define_tune
from megatune.tune.layouts.candidates import Candidate, Tuned
from megatune.tune.layouts.halving import Done, Next
from megatune.tune.layouts.journal import GOOD, Ended, Trial
from megatune.tune.layouts.measure import Measure

LLAMA_17M = Path(__file__).parents[2] / "benchmarks/models/llama-17m"
TOKENS = 1024
LOSSES = (2.0, 1.9, 1.8)


def write_run(folder: Path, **sections: object) -> Path:
    """A run file on two ranks of this machine, eight sequences a step; no weights are needed to plan it."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')
    run = {
        "model": {"model_name_or_path": str(LLAMA_17M)},
        "data": {"train": str(rows), "max_seq_length": 128},
        "train": {
            "output_dir": str(folder / "run"),
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
        },
        "launch": {"nproc_per_node": 2},
        **sections,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def measured(token_s: float, *, peak_bytes: int = 10**9, losses: Sequence[float] = LOSSES) -> Measure:
    """What a trial would have measured."""
    seconds = (token_s * TOKENS,) * 3
    return Measure(
        losses=tuple(losses),
        wall_s=seconds,
        cpu_s=tuple(2 * each for each in seconds),
        tokens=(TOKENS,) * 3,
        peak_bytes=peak_bytes,
        engine="recorded",
        attention="sdpa",
    )


def good(token_s: float, **changes: object) -> Ended:
    """A trial that ended well."""
    return Ended(outcome=GOOD, why=None, seconds=1.0, measure=measured(token_s, **changes))  # type: ignore[arg-type]


class Replay:
    """Makes the trials of a tune out of a table."""

    def __init__(self, run_file: Path, end_of: Callable[[Candidate, int], Ended], **options: object) -> None:
        asked = TuneOptions(**{"clock": "wall", **options})  # type: ignore[arg-type]
        _, self.definition, _ = define_tune(run_file, (), asked)
        self._end_of = end_of
        resolved = run_file.with_name("resolved.yaml")
        resolved.write_text(self.definition.run)
        tuned = Tuned(run_file=resolved, overrides=(), machine=self.definition.machine)
        self._forecaster = self.definition.forecaster(tuned)
        self.trials: list[Trial] = []

    def step(self, trials: Sequence[Trial]) -> object:
        """What is to be done after `trials`."""
        return self.definition.next_trial(trials, self._forecaster)

    def run(self) -> list[Trial]:
        """All trials to the end."""
        while isinstance(step := self.step(self.trials), Next):
            ended = self._end_of(self.definition.space.candidates[step.candidate], step.rung)
            self.trials.append(
                Trial(
                    number=len(self.trials),
                    candidate=step.candidate,
                    rung=step.rung,
                    steps=step.steps,
                    ended=ended,
                )
            )
            assert len(self.trials) <= self.definition.rules.num_trials
        assert isinstance(step, Done), step
        return self.trials

    @property
    def best(self) -> Candidate | None:
        """The winner."""
        best = self.definition.standing(self.trials).best
        return None if best is None else best.candidate
