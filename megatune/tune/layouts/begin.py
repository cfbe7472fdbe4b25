"""Sets a tune up: everything that can be wrong with the run and the options is found here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from megatune.config import LoadedRun, load_run, resolved_values, resolved_yaml
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.devices import count_cpus
from megatune.launch.nodelist import expand_nodelist
from megatune.launch.ranks import in_allocation_shell, surroundings
from megatune.launch.slurm.workers_job import site_by_path
from megatune.plan.activations import has_dropout
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, layout_of
from megatune.plan.weights import count_model
from megatune.tune.layouts.candidates import Tuned
from megatune.tune.layouts.definition import Definition, Rules, keep_definition
from megatune.tune.layouts.journal import TuneFolder
from megatune.tune.layouts.knobs import AS_IT_IS, BY_KEY, POLICY, RANKS
from megatune.tune.layouts.machine import machine_in_job, machine_of_trials
from megatune.tune.layouts.measure import Clock
from megatune.tune.layouts.objective import parse_objective
from megatune.tune.layouts.space import Choice, build_space

_SOURCE = "megatune tune"
_CLOCKS = ("auto", "wall", "cpu")
_BUSY_LOAD = 0.25
"""Load of a core, before the tune begins, from which on others are using the machine."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What the command line says beside the run file."""

    num_trials: int = 16
    steps: int = 5
    warmup_steps: int = 2
    minutes: float = 15.0
    objective: str = "tokens_per_second"
    clock: str = "auto"
    gpu: str | None = None
    tried: Sequence[str] = ()
    fixed: Sequence[str] = ()
    shortlist: int = 24
    on_slurm: bool = False
    """The trials will be steps of a job that is handed in now."""


def tune_folder(loaded: LoadedRun) -> TuneFolder:
    """Where the tune of a run lies."""
    return TuneFolder(Path(loaded.run.train.output_dir).absolute() / "tune")


def define_tune(
    run_file: Path, overrides: Sequence[str], options: TuneOptions
) -> tuple[TuneFolder, Definition, LoadedRun]:
    """Check everything and say what would be tuned; nothing is written. The run has the global batch of its layout.

    Raises ConfigError with every problem at once, ModelError and PlanError for what cannot be planned.
    """
    loaded = load_run(run_file, overrides)
    in_job = options.on_slurm or (loaded.run.slurm is not None and in_allocation_shell())
    tried = _tried(options.tried)
    problems = [*_option_problems(options), *_knob_problems(tried, options, in_job=in_job)]
    problems += _run_problems(loaded, in_job=in_job)
    if problems:
        raise ConfigError(problems, source=_SOURCE)
    machine = _machine(loaded, run_file, options, in_job=in_job)
    pinned = [
        *overrides,
        *_same_batch(loaded, machine),
        *_same_place(loaded, run_file, machine, in_job=in_job),
    ]
    loaded = load_run(run_file, pinned)
    _refuse_bad_values(run_file, pinned, tried)
    choice = Choice(tried=tried, fixed=[_full_key(key) for key in options.fixed], shortlist=options.shortlist)
    space = build_space(Tuned(run_file=run_file, overrides=pinned, machine=machine), choice)
    clock, why = _clock(options.clock, machine, in_job=in_job)
    rules = Rules(
        num_trials=options.num_trials,
        steps=options.steps,
        warmup_steps=options.warmup_steps,
        limit_s=60 * options.minutes,
        objective=parse_objective(options.objective),
        clock=clock,
        clock_why=why,
        precision=loaded.run.precision,
        in_job=in_job,
    )
    definition = Definition(run=resolved_values(loaded), rules=rules, space=space, machine=machine)
    return tune_folder(loaded), definition, loaded


def begin_tune(folder: TuneFolder, definition: Definition, loaded: LoadedRun) -> Definition:
    """Enter the tune into its folder, or go on with what is there. Raises ConfigError when that is another tune."""
    folder.create()
    kept = keep_definition(folder, definition)
    if not folder.run_file.exists():
        write_text_atomic(folder.run_file, resolved_yaml(loaded))
    _drop_dropout(loaded, folder)
    return kept


def _tried(texts: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        # A key may be given twice: all of its values count.
        of_key = found.setdefault(_full_key(key.strip()), [])
        of_key += [value.strip() for value in values.split(",") if value.strip()]
    return found


def _full_key(key: str) -> str:
    """The key of the DeepSpeed policy in full where its last name is given."""
    return next((name for name in BY_KEY if name.startswith(POLICY) and name.endswith(f".{key}")), key)


def _option_problems(options: TuneOptions) -> Iterator[str]:
    least = {
        "--trials": (options.num_trials, 2),
        "--steps": (options.steps, 2),
        "--shortlist": (options.shortlist, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            yield f"{name} is {value}; it must be {smallest} or more."
    if options.warmup_steps < 0:
        yield f"--warmup is {options.warmup_steps}; it must be 0 or more."
    if not 0 < options.minutes < float("inf"):
        yield f"--minutes is {options.minutes:g}; it must be above 0."
    if options.clock not in _CLOCKS:
        yield f"--clock is {options.clock!r}; it must be one of {', '.join(_CLOCKS)}."
    try:
        parse_objective(options.objective)
    except ConfigError as error:
        yield from error.problems


def _knob_problems(
    tried: Mapping[str, Sequence[str]], options: TuneOptions, *, in_job: bool
) -> Iterator[str]:
    fixed = [_full_key(key) for key in options.fixed]
    for option, keys in (("--try", list(tried)), ("--fix", fixed)):
        for key in keys:
            if key not in BY_KEY:
                near = get_close_matches(key, BY_KEY, n=1)
                hint = f" Did you mean {near[0]}?" if near else f" Knobs: {', '.join(BY_KEY)}."
                yield f"{option} {key}: that is no knob.{hint}"
    for key, values in tried.items():
        if not values:
            yield f"--try {key}: it needs values, as in --try parallel.tp_size=1,2."
        if key in fixed:
            yield f"{key} is given to --try and to --fix; keep one."
        if key.startswith(POLICY) and not all(value.isdecimal() or value == AS_IT_IS for value in values):
            yield f"--try {key}: its values must be whole numbers, or {AS_IT_IS} for DeepSpeed's own."
        if key == RANKS and (in_job or not all(v.isdecimal() and int(v) for v in values)):
            yield f"--try {key}: whole numbers from 1, and only where the trials are local processes."


def _run_problems(loaded: LoadedRun, *, in_job: bool) -> Iterator[str]:
    launch, slurm = loaded.run.launch, loaded.run.slurm
    if in_job:
        if slurm is None:
            yield "--slurm needs the run file's slurm section: it says what the job asks for."
        return
    if launch.launcher not in ("auto", "local") or launch.nodes > 1:
        yield (
            f"launch.launcher = {launch.launcher} on {launch.nodes} node(s), but here the trials are local processes. "
            "Use launch.launcher=auto and launch.nodes=1, or tune inside a job: --slurm 1."
        )


def _machine(loaded: LoadedRun, run_file: Path, options: TuneOptions, *, in_job: bool) -> Machine:
    if not in_job:
        return machine_of_trials(loaded.run, options.gpu)
    machine = machine_in_job(loaded, tune_folder(loaded).path, run_file)
    nodes = surroundings().get("SLURM_JOB_NODELIST")
    if not options.on_slurm and nodes is not None and len(expand_nodelist(nodes)) != machine.nodes:
        raise ConfigError(
            [
                f"slurm.nodes is {machine.nodes}, but this allocation has {len(expand_nodelist(nodes))}: the trials "
                "are steps on all of them. Make them equal."
            ],
            source=_SOURCE,
        )
    return machine


def _same_batch(loaded: LoadedRun, machine: Machine) -> list[str]:
    """The global batch of the run's own layout, which all candidates keep."""
    sequences = layout_of(loaded.run, machine.num_devices).global_sequences
    return [
        "train.gradient_accumulation_steps=null",
        "train.tokens_per_step=null",
        f"train.global_batch_size={sequences}",
    ]


def _same_place(loaded: LoadedRun, run_file: Path, machine: Machine, *, in_job: bool) -> list[str]:
    """The ranks of the job in `launch` too, and its site by its full path, for workers that look from another folder.

    Local trials have no job, whose nodes would contradict theirs.
    """
    slurm = loaded.run.slurm
    if slurm is None or not in_job:
        return [] if slurm is None else ["slurm=null"]
    ranks = [f"launch.nodes={machine.nodes}", f"launch.nproc_per_node={machine.ranks_per_node}"]
    return [*ranks, *site_by_path(loaded, run_file)]


def _refuse_bad_values(run_file: Path, overrides: Sequence[str], tried: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError for values that the run file does not take, whatever the other knobs are."""
    problems = []
    for key, values in tried.items():
        for value in values if not key.startswith(POLICY) else ():
            try:
                load_run(run_file, [*overrides, f"{key}={value}"])
            except ConfigError as error:
                problems += [f"--try {key}={value}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems, source=_SOURCE)


def _clock(asked: str, machine: Machine, *, in_job: bool) -> tuple[Clock, str]:
    """The clock, and why."""
    if asked != "auto":
        return ("cpu" if asked == "cpu" else "wall"), "asked for"
    if not machine.place().on_cpu:
        return "wall", "devices compute while their host waits"
    if in_job:
        return "wall", "the nodes of the job are its own"
    load, cores = os.getloadavg()[0], count_cpus()
    if load > _BUSY_LOAD * cores:
        return "cpu", f"others use this machine: load {load:.1f} on {cores} cores when the tune began"
    return "wall", f"nobody else uses this machine: load {load:.1f} on {cores} cores when the tune began"


def _drop_dropout(loaded: LoadedRun, folder: TuneFolder) -> None:
    """Put the model without its dropout into the folder, where it has any: layouts draw other masks by design."""
    config = read_model_config(loaded.run)
    named = any("drop" in key and isinstance(value, float | int) and value for key, value in config.items())
    if folder.model.is_dir() or not (named or has_dropout(count_model(config))):
        return
    from megatune.train.inputs import open_model
    from megatune.train.verify.model import without_dropout

    scratch = folder.path / f".model.{os.getpid()}"
    made, _ = without_dropout(open_model(loaded.run), scratch)
    if made == scratch:
        scratch.rename(folder.model)
