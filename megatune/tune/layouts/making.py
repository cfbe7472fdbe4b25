"""Makes one trial: `megatune train` with a candidate's values, watched, and what came of it."""

import time

from megatune.config import load_run, path_override
from megatune.errors import ConfigError
from megatune.launch.digest import digest_run
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.places import place_of
from megatune.tune.layouts.candidates import overrides_of, write_policy
from megatune.tune.layouts.definition import Definition
from megatune.tune.layouts.halving import Next
from megatune.tune.layouts.journal import GOOD, INTERRUPTED, SLOW, Ended, TuneFolder
from megatune.tune.layouts.measure import Measure, read_measure
from megatune.tune.layouts.objective import Figures
from megatune.tune.layouts.standing import Standing
from megatune.tune.owner import Mark
from megatune.tune.trial import (
    StopSignals,
    TrialEnd,
    last_lines,
    measuring_overrides,
    run_trial,
)

_USER_ERROR = 2
_STEADY = ("train.lr_scheduler_type=constant", "train.warmup_steps=0", "health.on_nonfinite=stop")
"""A course of the learning rate that does not hang on the number of steps, or losses would differ."""
_STOPPED_CODES = (STOPPED_BUT_SAVED, 128 + 15, -15)
"""A trial that ends so by itself was stopped from outside: its node goes, or the whole job."""
_MEMORY = ("gpu_memory", "host_memory")
_GRACE_S = 20.0
"""What a trial that is told to end has, before it is killed: it has nothing to save."""
_SURE_STEPS = 2
_HOPELESS = 1.25
"""A first trial is ended early when its fastest step, so many times as fast, would not beat the best so far."""


class Maker:
    """Makes trials of the tune in `folder`, here or in the allocation of this process.

    Raises ConfigError outside the job that the trials are to be steps of.
    """

    def __init__(self, folder: TuneFolder, definition: Definition, stop: StopSignals) -> None:
        self._folder, self._definition, self._stop = folder, definition, stop
        self._run = load_run(folder.run_file)
        self._place = place_of(self._run, folder.path, folder.run_file, in_job=definition.rules.in_job)

    def ready(self) -> None:
        """Prepare the data where trials span nodes, which do not wait for one rank to do it. Raises DataError."""
        if self._definition.rules.in_job:
            from megatune.train.inputs import prepare_inputs

            prepare_inputs(self._run.run, RunFolder(self._run.run.train.output_dir))

    def make(self, step: Next, number: int, standing: Standing, mark: Mark) -> Ended:
        """Make trial `number`, which was taken; `mark` moves meanwhile.

        Raises ConfigError when the run's own layout is refused: then the run file is wrong.
        """
        run, name = self._folder.trial(number), f"tune-{number:05d}"
        watch = _Watch(self._definition, step, run, standing)

        def look() -> bool:
            mark.move()
            return watch.look()

        end = run_trial(
            self.arguments(step, run),
            log=self._folder.trial_log(number),
            watch=look,
            stop=self._stop,
            launcher=self._place.launcher(name, run.logs),
            grace_s=_GRACE_S,
        )
        self._place.end(name)
        return self._ended(step, number, run, end, watch)

    def arguments(self, step: Next, run: RunFolder) -> list[str]:
        """What `megatune train` is given for the trial in `run`, whose folder is made: run file and overrides."""
        rules = self._definition.rules
        values = self._definition.space.candidates[step.candidate].values
        run.create()
        shared = RunFolder(self._run.run.train.output_dir).prepared
        shared.mkdir(parents=True, exist_ok=True)
        run.share_prepared(shared)
        given = [*overrides_of(values), *measuring_overrides(run, rules.warmup_steps + step.steps), *_STEADY]
        given.append(
            f"health.hang_timeout_s={hang_limit_s(self._run.run.health.hang_timeout_s, rules.limit_s)}"
        )
        given += write_policy(self._definition.tuned(self._folder), values, run.path / "policy.json")
        if self._folder.model.is_dir():
            given += self._without_dropout()
        return [str(self._folder.run_file), *given, *self._place.overrides()]

    def _without_dropout(self) -> list[str]:
        """The model's copy, and the tokenizer by its own name, by which prepared data are found again."""
        model = self._run.run.model
        tokenizer = model.tokenizer or model.model_name_or_path
        return [
            path_override("model.model_name_or_path", self._folder.model),
            f'model.tokenizer="{tokenizer}"',
            "model.revision=null",
        ]

    def _ended(self, step: Next, number: int, run: RunFolder, end: TrialEnd, watch: "_Watch") -> Ended:
        measure = read_measure(run.metrics, warmup_steps=self._definition.rules.warmup_steps)
        outcome, why = self._outcome(step, number, run, end, watch, measure)
        return Ended(outcome=outcome, why=why, seconds=end.seconds, measure=measure)

    def _outcome(
        self, step: Next, number: int, run: RunFolder, end: TrialEnd, watch: "_Watch", measure: Measure | None
    ) -> tuple[str, str | None]:
        if end.exit_code == 0 and measure is not None:
            return GOOD, None
        if end.ended_by == "watch":
            return watch.verdict or "timeout", watch.why
        if end.ended_by == "stop" or end.exit_code in _STOPPED_CODES:
            return INTERRUPTED, None
        if any(run.crash.glob("*/verdict.txt")):
            verdict = next(run.crash.glob("*/verdict.txt")).read_text(encoding="utf-8")
            return "hang", verdict.strip()
        log = self._folder.trial_log(number)
        if end.exit_code == _USER_ERROR:
            words = last_lines(log)
            if step.candidate == 0:
                raise ConfigError([f"the run's own layout was refused:\n{words}"], source="megatune tune")
            return "refused", words
        found = digest_run(run)
        return ("memory" if found.cause.name in _MEMORY else "crash"), f"{found.cause.name}: {found.summary}"


class _Watch:
    """Looks at a running trial: is it over its time, and can it still win?"""

    def __init__(self, definition: Definition, step: Next, run: RunFolder, standing: Standing) -> None:
        self._definition, self._step, self._run = definition, step, run
        self._standing = standing
        self._begun = time.monotonic()
        self._seen = -1
        self.verdict: str | None = None
        self.why: str | None = None

    def look(self) -> bool:
        """Whether the trial is to end."""
        if self.verdict is None:
            self._judge()
        return self.verdict is not None

    def _judge(self) -> None:
        rules = self._definition.rules
        if time.monotonic() - self._begun > rules.limit_s:
            self.verdict, self.why = "timeout", f"not done after {rules.limit_s:.0f} s"
        elif self._step.rung == 0 and self._has_grown():
            self.why = self._hopeless()
            self.verdict = None if self.why is None else SLOW

    def _has_grown(self) -> bool:
        size = self._run.metrics.stat().st_size if self._run.metrics.is_file() else 0
        grown, self._seen = size != self._seen, size
        return grown

    def _hopeless(self) -> str | None:
        leader, reference = self._standing.leader, self._standing.reference
        measure = read_measure(self._run.metrics, warmup_steps=self._definition.rules.warmup_steps)
        if measure is None or leader is None or leader.score is None or reference is None:
            return None
        devices = self._definition.space.candidates[self._step.candidate].devices
        fastest = measure.step_token_s(self._definition.rules.clock, devices)
        if len(fastest) < _SURE_STEPS:
            return None
        hoped = Figures(token_s=min(fastest) / _HOPELESS, peak_bytes=measure.peak_bytes, devices=devices)
        score = self._definition.rules.objective.score(hoped, reference)
        if score is None or score >= leader.score:
            return None
        return f"after {len(fastest)} steps {score:.2f} x the reference at best; the best so far has {leader.score:.2f}"


def hang_limit_s(asked: float, limit_s: float) -> float:
    """When a trial counts as hanging: as the run file says, but well before the trial's own limit."""
    return min(asked or limit_s, limit_s / 3)
