"""Sets a search up: everything that can be wrong with the run, the space and the options is found here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.config import LoadedRun, load_run, resolve_batch, resolved_values, resolved_yaml
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.devices import count_gpus, ranks_here
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.space import check_points, load_space
from megatune.tune.search.study import PRUNERS, SAMPLERS, Definition, open_study, set_up, trials_in

_SOURCE = "megatune search"
_DEFAULT_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the command line says beside the run file and the space."""

    sampler: str = "tpe"
    pruner: str | None = None
    """None: median where the run evaluates on the way and the search is no grid, else none."""
    num_trials: int | None = None
    seed: int = 0


def search_folder(loaded: LoadedRun) -> SearchFolder:
    """Where the search of a run lies."""
    return SearchFolder(Path(loaded.run.train.output_dir).absolute() / "search")


def begin_search(
    run_file: Path, overrides: Sequence[str], space_file: Path, options: SearchOptions
) -> SearchFolder:
    """Check everything, and enter the search and its trials into the journal, unless they are there.

    Raises ConfigError with every problem at once.
    """
    loaded = load_run(run_file, overrides)
    problems = [*_option_problems(options), *_run_problems(loaded, options)]
    if problems:
        raise ConfigError(problems, source=_SOURCE)
    space = load_space(space_file, loaded)
    is_grid = options.sampler == "grid"
    points = space.grid() if is_grid else space.probes()
    check_points(points, run_file, overrides, source=str(space_file), check=_check_batch)
    folder = search_folder(loaded)
    folder.create()
    definition = Definition(
        space=space,
        sampler=options.sampler,
        pruner=options.pruner or _default_pruner(loaded, options),
        seed=options.seed,
        run=resolved_values(loaded),
    )
    study = open_study(folder.path, create=True)
    num_known = len(trials_in(study))
    set_up(study, definition, options.num_trials or max(num_known, _DEFAULT_TRIALS))
    if not folder.run_file.exists():
        write_text_atomic(folder.run_file, resolved_yaml(loaded))
    return folder


def _option_problems(options: SearchOptions) -> list[str]:
    problems = []
    if options.sampler not in SAMPLERS:
        problems.append(f"--sampler is {options.sampler!r}; it must be one of {', '.join(SAMPLERS)}.")
    if options.pruner not in (None, *PRUNERS):
        problems.append(f"--pruner is {options.pruner!r}; it must be one of {', '.join(PRUNERS)}.")
    if options.num_trials is not None and options.num_trials < 1:
        problems.append(f"--trials is {options.num_trials}; it must be 1 or more.")
    if options.sampler == "grid" and options.num_trials is not None:
        problems.append("--trials is given, but --sampler grid tries every point of the space; leave it out.")
    if options.seed < 0:
        problems.append(f"--seed is {options.seed}; it must be 0 or more.")
    return problems


def _run_problems(loaded: LoadedRun, options: SearchOptions) -> list[str]:
    run, problems = loaded.run, []
    if run.data.validation is None and run.data.val_size is None:
        problems.append(
            "a search compares validation losses, and there are no rows for one; give data.validation or data.val_size."
        )
    if options.pruner in ("median", "hyperband") and run.evaluate.eval_steps is None:
        problems.append(
            f"--pruner {options.pruner} judges trials by losses on the way; give evaluate.eval_steps."
        )
    if run.checkpoint.resume not in ("auto", "none"):
        problems.append(
            f"checkpoint.resume = {run.checkpoint.resume}, but the trials of a search begin at the model; use auto."
        )
    if run.launch.launcher not in ("auto", "local") or run.launch.nodes > 1:
        problems.append(
            f"launch.launcher = {run.launch.launcher} on {run.launch.nodes} node(s), but a trial starts its ranks on "
            "one machine; use launch.launcher=auto and launch.nodes=1."
        )
    return problems


def _default_pruner(loaded: LoadedRun, options: SearchOptions) -> str:
    is_judged = loaded.run.evaluate.eval_steps is not None and options.sampler != "grid"
    return "median" if is_judged else "none"


def _check_batch(loaded: LoadedRun) -> None:
    """Raise ConfigError when the batch does not divide over the ranks, as far as they are known here."""
    asked, degree = loaded.run.launch.nproc_per_node, loaded.run.parallel.tp_size
    if loaded.run.slurm is not None:
        asked = loaded.run.slurm.gpus_per_node or asked
    ranks = ranks_here(asked, degree, num_gpus=count_gpus())
    if ranks % degree == 0:  # else `megatune train` refuses the layout itself
        resolve_batch(loaded.run, ranks // degree)
