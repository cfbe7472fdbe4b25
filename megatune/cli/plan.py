"""`megatune plan`: what fits, how fast, and why not, before anything queues."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatune.config import BatchShape, Run, load_run
from megatune.errors import ConfigError, PlanError
from megatune.files import write_text_atomic
from megatune.launch.devices import count_cpus, count_gpus, gpu_kind, host_memory_bytes
from megatune.launch.measurements import measured_for
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.text import memory_bytes, time_limit_s
from megatune.plan.answer import plan_answer
from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.buckets import sizes_of
from megatune.plan.ds_config import make_ds_config, read_policy
from megatune.plan.forecast import forecast
from megatune.plan.hardware import ACCELERATORS, Accelerator, accelerator_named, find_accelerator
from megatune.plan.layout import Layout
from megatune.plan.layout_text import parse_layout
from megatune.plan.lengths import plan_lengths
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, is_given_in_full, layout_of, make_question
from megatune.plan.search import Found, pareto_front, refuse_all, refuse_too_big, search
from megatune.report.tables import render_table, show, to_json
from megatune.units import format_bytes, format_count, format_duration, format_ratio

_SHOWN = 10
"""Rows of the Pareto table and of the rejected layouts that people see; --json has all."""


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


def plan_run(run_file: Path, overrides: list[str], options: PlanOptions) -> None:
    """Plan a run and print the answer. Raises PlanError, after printing it, when it does not fit."""
    run = load_run(run_file, overrides).run
    if options.lengths is not None:
        _show_lengths(run, options)
        return
    question = _ask(run, options)
    found = search(question)
    asked = _asked_layout(run, options, question)
    chosen = assess(question, asked) if asked else found.best
    if chosen is None:
        raise refuse_all(question, found)
    slurm = run.slurm
    ahead = forecast(
        question,
        chosen,
        num_steps=run.train.max_steps,
        limit_s=time_limit_s(slurm.time) if slurm and slurm.time else None,
        reserve_s=slurm.signal_delay_s if slurm else 0,
        price_per_gpu_hour=options.price_per_gpu_hour,
    )
    answer = plan_answer(question, chosen, found, ahead)
    show(answer, *_pictures(answer, question, chosen, found), as_json=options.as_json)
    if not chosen.ledger.fits:
        raise refuse_too_big(chosen, found)
    if options.write:
        _write(run, chosen.layout, answer, sizes_of(question.work.model))


def _ask(run: Run, options: PlanOptions) -> Question:
    return make_question(run, read_model_config(run), _machine(run, options), read_policy(run.deepspeed))


def _show_lengths(run: Run, options: PlanOptions) -> None:
    """The best layout at each length. None is chosen: what is learnt hangs on the length."""
    lengths = _lengths(options)
    tokens = _ask(run, options).global_sequences * run.data.max_seq_length
    found = list(plan_lengths(run, lengths, tokens, lambda other: _ask(other, options)))
    rows = [
        {
            "max_seq_length": one.seq,
            "layout": "n/a" if one.best is None else str(one.best.layout),
            "a device": format_bytes(None if one.best is None else one.best.ledger.device_total),
            "step": _seconds(None if one.best is None else one.best.step_s),
            "tokens/s a device": "n/a" if one.best is None else _rate(one.best),
            "": one.remark,
        }
        for one in found
    ]
    answer = {"schema": 1, "tokens_per_step": tokens, "lengths": [one.as_object() for one in found]}
    show(answer, render_table(rows, title=f"{tokens} tokens a step"), as_json=options.as_json)


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


def _asked_layout(run: Run, options: PlanOptions, question: Question) -> Layout | None:
    """The layout to evaluate as given; None: the best one is wanted."""
    if options.layout is not None:
        return parse_layout(options.layout, question.num_devices)
    return layout_of(run, question.num_devices) if is_given_in_full(run) else None


def _machine(run: Run, options: PlanOptions) -> Machine:
    """Where the run will be: the options, then the slurm section, then launch, then this machine."""
    slurm = run.slurm
    nodes = options.nodes or (slurm.nodes if slurm else run.launch.nodes)
    asked = options.gpus_per_node
    if asked is None and slurm is not None and slurm.gpus_per_node is not None:
        asked = slurm.gpus_per_node
    if asked is None and run.launch.nproc_per_node != "auto":
        asked = run.launch.nproc_per_node
    accelerator = _accelerator(options.gpu, on_gpus=bool(count_gpus()) if asked is None else asked > 0)
    per_node = asked or (count_gpus() if accelerator else 0) or max(1, count_cpus())
    memory = memory_bytes(slurm.mem.upper()) or None if slurm and slurm.mem else None
    is_elsewhere = accelerator is not None and not count_gpus()
    if memory is None and slurm is None and not is_elsewhere:
        memory = host_memory_bytes()
    return Machine(
        nodes=nodes,
        ranks_per_node=per_node,
        accelerator=accelerator,
        host_memory_bytes=memory,
        measured=measured_for(run, device=accelerator.name if accelerator else "cpu"),
    )


def _accelerator(name: str | None, *, on_gpus: bool) -> Accelerator | None:
    if name == "cpu":
        return None
    if name is not None:
        return accelerator_named(name)
    if not on_gpus:
        return None
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
    batch = BatchShape(
        micro=layout.micro_batch, accumulation=layout.accumulation, global_sequences=layout.global_sequences
    )
    ds_config = make_ds_config(planned_run(run, layout), batch, read_policy(run.deepspeed), sizes)
    write_text_atomic(folder.plan, to_json(answer) + "\n")
    write_text_atomic(folder.ds_config, json.dumps(ds_config, indent=2) + "\n")


def planned_run(run: Run, layout: Layout) -> Run:
    """`run` with the values of `layout`."""
    parallel = run.parallel.model_copy(
        update={"tp_size": layout.tensor_parallel, "offload": layout.offload, "zero_stage": layout.zero_stage}
    )
    model = run.model.model_copy(update={"gradient_checkpointing": layout.gradient_checkpointing})
    return run.model_copy(update={"parallel": parallel, "model": model})


def _pictures(
    answer: dict[str, Any], question: Question, chosen: Assessment, found: Found
) -> list[Table | Text]:
    model, ledger = question.work.model, chosen.ledger
    layout, ahead = chosen.layout, answer["forecast"]
    tokens = layout.global_sequences * question.work.seq
    head = [
        f"model: {format_count(model.num_params)} parameters, {tokens} tokens a step on "
        f"{question.num_devices} x {answer['devices']['name']}",
        f"layout: {layout}",
        "run file: " + " ".join(_as_overrides(layout)),
        f"step: {_seconds(chosen.step_s)}, {_rate(chosen)} tokens/s a device, MFU {format_ratio(chosen.mfu)} "
        f"(causal {format_ratio(chosen.mfu_causal)}), HFU {format_ratio(chosen.hfu)}",
        f"whole run: {format_duration(ahead['total_s'])}, jobs {ahead['num_jobs'] or 'n/a'}, GPU-hours "
        f"{_short(ahead['gpu_hours'])}, energy {_short(ahead['energy_kwh'])} kWh, cost {_short(ahead['cost'])}",
    ]
    rows = [{"component": k, "bytes": format_bytes(v)} for k, v in ledger.device.items() if v]
    rows.append(
        {
            "component": f"total, of {format_bytes(ledger.device_limit)}",
            "bytes": format_bytes(ledger.device_total),
        }
    )
    host = [{"component": k, "bytes": format_bytes(v)} for k, v in ledger.host.items() if v]
    host.append(
        {
            "component": f"total, of {format_bytes(ledger.host_limit)}",
            "bytes": format_bytes(ledger.host_total),
        }
    )
    peaks = ", ".join(f"{name} {format_bytes(size)}" for name, size in ledger.host_peaks.items())
    phases = answer["time"]["by_phase"] or {}
    front = [
        {"layout": str(a.layout), "device": format_bytes(a.ledger.device_total), "step": _seconds(a.step_s)}
        for a in pareto_front(found.fitting)[:_SHOWN]
    ]
    rejected = [{"layout": _words(one.layout), "reason": one.reason} for one in found.rejected]
    return [
        *map(Text, head),
        render_table(rows, title=f"one device, at the {ledger.moment}"),
        *(
            [render_table(host, title=f"host memory of one node (at its most: {peaks})")]
            if ledger.host
            else []
        ),
        *(
            [render_table([{"phase": k, "seconds": v} for k, v in phases.items()], title="one step")]
            if phases
            else []
        ),
        render_table(front, title="memory against speed: no other layout beats these in both"),
        *map(Text, (*answer["notes"], *answer["reasons"])),
        render_table(
            rejected[:_SHOWN], title=f"rejected: {len(rejected)}, of which {_SHOWN} here (--json has all)"
        ),
    ]


def _as_overrides(layout: Layout) -> list[str]:
    """What the run file must say for this layout."""
    return [
        f"parallel.tp_size={layout.tensor_parallel}",
        f"parallel.zero_stage={layout.zero_stage}",
        f"train.per_device_train_batch_size={layout.micro_batch}",
        f"train.global_batch_size={layout.global_sequences}",
        f"model.gradient_checkpointing={str(layout.gradient_checkpointing).lower()}",
        f"parallel.offload={layout.offload}",
    ]


def _words(layout: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in layout.items())


def _seconds(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{seconds:.3g} s"


def _rate(judged: Assessment) -> str:
    rate = judged.tokens_per_second_per_device
    return "n/a" if rate is None else f"{rate:,.0f}"


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}"
