"""`megatune plan`: what fits, how fast, and why not, before anything queues."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from megatune.cli.named import names_run_file
from megatune.cli.plan_steps import steps_of_run
from megatune.cli.plan_view import plan_views, rate_text, seconds_text
from megatune.config import LoadedRun, Run, load_run
from megatune.errors import ConfigError, PlanError
from megatune.files import write_text_atomic
from megatune.launch.devices import count_gpus, gpu_kind, ranks_here
from megatune.launch.measurements import measured_for
from megatune.launch.planned_run import machine_here
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.quantities import parse_limit_s, parse_memory_bytes
from megatune.plan.answer import plan_answer
from megatune.plan.assess import Question, assess
from megatune.plan.auto import open_keys, space_of
from megatune.plan.buckets import sizes_of
from megatune.plan.ds_config import make_ds_config, read_policy
from megatune.plan.forecast import forecast
from megatune.plan.given import Given, given_by
from megatune.plan.hardware import ACCELERATORS, Accelerator, accelerator_named, find_accelerator
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import batch_of, with_layout
from megatune.plan.layout_text import parse_layout
from megatune.plan.lengths import plan_lengths
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, make_question
from megatune.plan.refusal import refuse_all, refuse_too_big
from megatune.plan.search import Found, search
from megatune.plan.validity import refuse_untrainable
from megatune.report.tables import render_table, show, to_json
from megatune.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of the command."""

    nodes: int | None
    gpus_per_node: int | None
    gpu: str | None
    layout: str | None
    lengths: str | None
    """Sequence lengths to compare, as 1024,4096."""
    price_per_gpu_hour: float | None
    write: bool
    as_json: bool


@names_run_file
def plan_run(run_file: Path, overrides: list[str], options: PlanOptions) -> None:
    """Plan a run and print the answer. Raises PlanError, after printing it, when it does not fit."""
    loaded = load_run(run_file, overrides)
    run = loaded.run
    if options.lengths is not None:
        _show_lengths(loaded, options)
        return
    question = _ask(run, options)
    found = search(question)
    if options.layout is not None:
        chosen, given = assess(question, _asked_layout(options.layout, question)), None
    else:
        given = _as_a_start_does(loaded, question, found)
        assert given.chosen is not None, "refused by the callee"
        chosen = given.chosen
    slurm = run.slurm
    ahead = forecast(
        question,
        chosen,
        num_steps=steps_of_run(run, chosen.layout.global_sequences),
        limit_s=parse_limit_s(slurm.time) if slurm and slurm.time else None,
        reserve_s=slurm.signal_delay_s if slurm else 0,
        price_per_gpu_hour=options.price_per_gpu_hour,
    )
    answer = plan_answer(question, chosen, found, ahead) | ({} if given is None else given.as_object())
    lines = [] if given is None else given.lines()
    show(answer, *plan_views(answer, question, chosen, found, lines), as_json=options.as_json)
    if not chosen.ledger.fits:
        raise refuse_too_big(chosen, found)
    if options.write:
        _write(run, chosen.layout, answer, sizes_of(question.work.model))


def _as_a_start_does(loaded: LoadedRun, question: Question, found: Found) -> Given:
    """What a start of `loaded` would take: of what its run file leaves open, the best, or what lacks least.

    Raises PlanError where nothing can be trained, and where nothing of `found`, all that there is, fits.
    """
    keys = open_keys(loaded.run, loaded.auto)
    own = search(question, space_of(loaded.run, keys))
    given = given_by(loaded, own.nearest, found)
    if own.nearest is None:
        raise PlanError("\n".join([str(refuse_all(question, own)), *given.lines()]))
    if own.best is None and found.best is None and keys:
        raise refuse_all(question, found)
    return given


def _ask(run: Run, options: PlanOptions) -> Question:
    return make_question(run, read_model_config(run), _machine(run, options), read_policy(run.deepspeed))


def _show_lengths(loaded: LoadedRun, options: PlanOptions) -> None:
    """The best layout at each length. None is chosen: what is learnt hangs on the length."""
    run, lengths = loaded.run, _lengths(options)
    space = space_of(run, open_keys(run, loaded.auto))
    tokens = _ask(run, options).global_sequences * run.data.max_seq_length
    found = list(plan_lengths(run, lengths, tokens, lambda other: _ask(other, options), space))
    rows = [
        {
            "max_seq_length": one.seq,
            "layout": "n/a" if one.best is None else str(one.best.layout),
            "a device": format_bytes(None if one.best is None else one.best.ledger.device_total),
            "step": seconds_text(None if one.best is None else one.best.step_s),
            "tokens/s a device": "n/a" if one.best is None else rate_text(one.best),
            "": one.remark,
        }
        for one in found
    ]
    answer = {"schema": 1, "tokens_per_step": tokens, "lengths": [one.as_object() for one in found]}
    views = [Text(line) for line in given_by(loaded, None, Found()).lines()]
    show(answer, render_table(rows, title=f"{tokens} tokens a step"), *views, as_json=options.as_json)


def _lengths(options: PlanOptions) -> list[int]:
    assert options.lengths is not None, "asked by the caller"
    texts = [text.strip() for text in options.lengths.split(",")]
    problems = [
        f"--seq: {text or 'an empty value'} is not a whole number from 1, as in --seq 1024,4096."
        for text in texts
        if not (text.isdecimal() and int(text) > 0)
    ]
    if options.layout is not None or options.write:
        problems.append(
            "--seq compares the best layouts of several lengths: it takes no --layout and no --write."
        )
    if problems:
        raise ConfigError(problems, source="megatune plan")
    return [int(text) for text in texts]


def _asked_layout(text: str, question: Question) -> Layout:
    """The layout of --layout. Raises ConfigError where it is none, or a start would refuse it."""
    layout = parse_layout(text, question.num_devices)
    refuse_untrainable(question, layout, source=f"--layout {text}")
    return layout


def _machine(run: Run, options: PlanOptions) -> Machine:
    """Where the run will be: the options, then the slurm section, then launch, then this machine."""
    slurm = run.slurm
    nodes = options.nodes or (slurm.nodes if slurm else run.launch.nodes)
    gpus = options.gpus_per_node
    if gpus is None and slurm is not None:
        gpus = slurm.gpus_per_node
    asked = run.launch.nproc_per_node
    on_gpus = _on_gpus(gpus, is_here=asked == "auto" or (nodes == 1 and slurm is None))
    gpu = options.gpu if options.gpu or on_gpus else "cpu"
    accelerator = _accelerator(gpu)
    if gpus == 0 and accelerator is not None:
        raise ConfigError(
            [f"--gpu {gpu} and no GPUs on a node: give --gpus-per-node above 0, or take --gpu out."],
            source="megatune plan",
        )
    per_node = gpus or ranks_here(asked, run.parallel.tp_size, num_gpus=count_gpus() if accelerator else 0)
    if slurm is None and (accelerator is None or count_gpus()):
        return machine_here(run, num_nodes=nodes, ranks_per_node=per_node, gpu=gpu)
    return Machine(
        nodes=nodes,
        ranks_per_node=per_node,
        accelerator=accelerator,
        host_memory_bytes=parse_memory_bytes(slurm.mem) if slurm and slurm.mem else None,
        measured=measured_for(run, device=accelerator.name if accelerator else "cpu"),
    )


def _on_gpus(gpus: int | None, *, is_here: bool) -> bool:
    """Do ranks have GPUs? launch.nproc_per_node does not tell: of this machine the driver does, elsewhere they may."""
    if gpus is not None:
        return gpus > 0
    return count_gpus() > 0 if is_here else True


def _accelerator(name: str | None) -> Accelerator | None:
    """The GPUs of that name, None for cpu; without a name those of this machine. Raises PlanError where nobody says."""
    if name == "cpu":
        return None
    if name is not None:
        return accelerator_named(name)
    kind = gpu_kind() if count_gpus() else None
    row = find_accelerator(kind[0]) if kind else None
    if row is not None:
        return row  # this machine's own
    raise PlanError(
        f"which GPU is it? Give --gpu with one of {', '.join(row.name for row in ACCELERATORS)}; cpu plans for "
        "machines without GPUs."
    )


def _write(run: Run, layout: Layout, answer: dict[str, Any], sizes: dict[str, int]) -> None:
    folder = RunFolder(run.train.output_dir)
    folder.create()
    ds_config = make_ds_config(with_layout(run, layout), batch_of(layout), read_policy(run.deepspeed), sizes)
    write_text_atomic(folder.plan, to_json(answer) + "\n")
    write_text_atomic(folder.ds_config, json.dumps(ds_config, indent=2) + "\n")
