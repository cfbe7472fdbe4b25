"""What a tune is: its candidates and rules, kept in tune.json so that all its workers agree."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatune.config import load_run
from megatune.errors import ConfigError, MegatuneError
from megatune.files import write_text_atomic
from megatune.launch.measurements import measured_for
from megatune.plan.hardware import accelerator_named
from megatune.plan.question import Machine
from megatune.tune.layouts.candidates import Candidate, Space, Tuned
from megatune.tune.layouts.expect import Forecaster
from megatune.tune.layouts.halving import Done, Next, Wait, next_trial
from megatune.tune.layouts.journal import Trial, TuneFolder
from megatune.tune.layouts.measure import Clock
from megatune.tune.layouts.objective import Objective
from megatune.tune.layouts.standing import Standing, stand

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How trials are made and judged."""

    num_trials: int
    """In all, those that are made twice counted twice."""
    steps: int
    """Timed steps of a first trial."""
    warmup_steps: int
    """Steps before them that are not timed."""
    limit_s: float
    """Of one trial, start and loading counted."""
    objective: Objective
    clock: Clock
    clock_why: str
    precision: str
    """Decides how far losses may differ."""
    in_job: bool
    """Trials are steps of srun in an allocation, not local processes."""

    @property
    def clock_words(self) -> str:
        """What seconds are measured by."""
        return "wall time" if self.clock == "wall" else "processor time of the ranks"


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One tune."""

    run: str
    """The resolved run file without its comments."""
    rules: Rules
    space: Space
    machine: Machine

    def as_object(self) -> dict[str, Any]:
        rules = {**asdict(self.rules), "objective": dict(self.rules.objective.weights)}
        device = self.machine.accelerator
        return {
            "schema": SCHEMA,
            "run": self.run,
            "rules": rules,
            "machine": {
                "nodes": self.machine.nodes,
                "ranks_per_node": self.machine.ranks_per_node,
                "accelerator": device.name if device else None,
                "device_memory_bytes": self.machine.device_memory_bytes,
                "host_memory_bytes": self.machine.host_memory_bytes,
                "on_cpu": self.machine.on_cpu,
            },
            "varied": {key: list(values) for key, values in self.space.varied.items()},
            "left_out": list(self.space.left_out),
            "candidates": [candidate.as_object() for candidate in self.space.candidates],
        }

    def tuned(self, folder: TuneFolder) -> Tuned:
        """The run of the folder, for the planner."""
        return Tuned(run_file=folder.run_file, overrides=(), machine=self.machine)

    def forecaster(self, tuned: Tuned) -> Forecaster:
        """Tells what the candidates will take."""
        return Forecaster(tuned, self.space, self.rules.clock)

    def standing(self, trials: Sequence[Trial]) -> Standing:
        """Where these trials put the candidates."""
        return stand(
            self.space.candidates,
            trials,
            objective=self.rules.objective,
            clock=self.rules.clock,
            precision=self.rules.precision,
        )

    def next_trial(self, trials: Sequence[Trial], forecaster: Forecaster) -> Next | Wait | Done:
        """What to do now. The same trials always give the same answer."""
        return next_trial(
            self.space.candidates,
            trials,
            num_trials=self.rules.num_trials,
            steps=self.rules.steps,
            objective=self.rules.objective,
            judge=self.standing,
            forecast=forecaster.forecast,
        )


def read_definition(folder: TuneFolder) -> Definition | None:
    """What `keep_definition` wrote; None without one. Raises MegatuneError for a file that cannot be used."""
    if not folder.definition.is_file():
        return None
    try:
        entry = json.loads(folder.definition.read_text(encoding="utf-8"))
        if entry["schema"] != SCHEMA:
            raise ValueError(f"its schema is {entry['schema']}, this version reads {SCHEMA}")
        return _definition(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise MegatuneError(
            f"{folder.definition} cannot be read as a tune ({error}). Delete the folder {folder.path} to begin anew."
        ) from error


def keep_definition(folder: TuneFolder, asked: Definition) -> Definition:
    """Enter what the tune is, or find it there; a different number of trials is taken over.

    Raises ConfigError when the folder holds another tune.
    """
    known = read_definition(folder)
    if known is None:
        _write(folder, asked)
        return asked
    changed = _changed(known, asked)
    if changed:
        raise ConfigError(
            [
                f"{folder.path} holds a tune that differs in: {', '.join(changed)}. Go on with the same values, choose "
                "another train.output_dir, or delete the folder."
            ],
            source="megatune tune",
        )
    if known.rules.num_trials != asked.rules.num_trials:
        known = replace(known, rules=replace(known.rules, num_trials=asked.rules.num_trials))
        _write(folder, known)
    return known


def _changed(known: Definition, asked: Definition) -> list[str]:
    """What makes another tune. The clock stays what it was: how busy a machine is changes from start to start."""
    old, new = known.as_object(), asked.as_object()
    for entry in (old["rules"], new["rules"]):
        del entry["num_trials"], entry["clock"], entry["clock_why"]
    found = [name for name in ("run", "machine", "varied") if old[name] != new[name]]
    found += [name for name in old["rules"] if old["rules"][name] != new["rules"][name]]
    mine, theirs = ([one.values for one in tune.space.candidates] for tune in (known, asked))
    return found if mine == theirs else [*found, "candidates"]


def _write(folder: TuneFolder, definition: Definition) -> None:
    write_text_atomic(folder.definition, json.dumps(definition.as_object(), indent=1) + "\n")


def _definition(entry: Mapping[str, Any]) -> Definition:
    machine, rules = dict(entry["machine"]), dict(entry["rules"])
    name = machine.pop("accelerator")
    return Definition(
        run=entry["run"],
        rules=Rules(**{**rules, "objective": Objective(rules["objective"])}),
        machine=Machine(**machine, accelerator=accelerator_named(name) if name else None, needs_limit=False),
        space=Space(
            candidates=tuple(Candidate.from_object(one) for one in entry["candidates"]),
            varied=entry["varied"],
            left_out=entry["left_out"],
        ),
    )


def with_measured(definition: Definition, folder: TuneFolder) -> Definition:
    """The definition with what was measured of this place by now: the doctor's links and rates."""
    run = load_run(folder.run_file).run
    device = definition.machine.accelerator
    on_cpu = definition.machine.on_cpu if definition.machine.on_cpu is not None else device is None
    name = device.name if device else "cpu" if on_cpu else None
    return replace(definition, machine=replace(definition.machine, measured=measured_for(run, device=name)))
