"""The largest model of benchmarks/models that the planner says trains on a machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.bench.inputs import MODELS, write_run
from megatune.bench.suite import LARGEST, Work
from megatune.config import Run, load_run
from megatune.errors import LaunchError
from megatune.launch.planned_run import machine_here
from megatune.plan.assess import assess
from megatune.plan.ds_config import read_policy
from megatune.plan.ledger import Ledger
from megatune.plan.model_config import read_config
from megatune.plan.question import Machine, layout_of, make_question
from megatune.plan.validity import problems_of
from megatune.plan.weights import count_model
from megatune.units import format_bytes

MachineOf = Callable[[Run, int], Machine]
"""The machine that a run with so many ranks gets."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A model, and what the planner says of it."""

    work: Work
    num_params: int
    planned_peak_bytes: int
    """Of one device; without GPUs of one rank."""


def here(run: Run, ranks: int) -> Machine:
    """This machine."""
    return machine_here(run, num_nodes=1, ranks_per_node=ranks)


def choose_largest(
    work: Work,
    overrides: Sequence[str],
    scratch: Path,
    *,
    models: Path = MODELS,
    machine_of: MachineOf = here,
) -> Chosen:
    """`work` with the largest model of `models` that fits, and that a start takes, beside what `overrides` say.

    Raises LaunchError where there is none, or where nobody knows how much memory there is; ConfigError or ModelError
    for overrides that are none, and for a config.json that cannot be planned.
    """
    sizes = {
        folder: count_model(read_config(folder / "config.json")).num_params for folder in models.iterdir()
    }
    last = None
    for folder in sorted(sizes, key=lambda folder: -sizes[folder]):
        tried = work.model_copy(update={"model": folder.name})
        ledger = _ledger(tried, folder, overrides, scratch, machine_of)
        if isinstance(ledger, str):
            last = f"{folder.name} is refused: {ledger}"
        elif ledger.fits:
            return Chosen(work=tried, num_params=sizes[folder], planned_peak_bytes=ledger.device_total)
        else:
            last = f"{folder.name} needs {format_bytes(ledger.device_total)} a device"
    raise LaunchError(f"model = {LARGEST}: none of {models} fits; {last or 'it is empty'}")


def _ledger(
    work: Work, model: Path, overrides: Sequence[str], scratch: Path, machine_of: MachineOf
) -> Ledger | str:
    """The plan's, or why a start would refuse this layout for this model."""
    run_file = write_run(work, model, scratch / "rows.jsonl", scratch / "planned.yaml", packing=False)
    run = load_run(run_file, list(overrides)).run
    machine = machine_of(run, work.ranks)
    question = make_question(run, read_config(model / "config.json"), machine, read_policy(run.deepspeed))
    if question.place.device_limit_bytes is None:
        raise LaunchError(f"model = {LARGEST}: how much memory this device has is not known")
    layout = layout_of(run, machine.num_devices)
    problems = problems_of(question, layout)
    return " ".join(problems) if problems else assess(question, layout).ledger
