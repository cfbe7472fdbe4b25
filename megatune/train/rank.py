"""What one rank does: join, build the engine, open the data, train."""

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from megatune.checkpoint.export import replace_export
from megatune.config import BatchShape, LoadedRun, Run, resolve_batch, resolved_yaml
from megatune.config.slurm import SlurmSection
from megatune.data.notices import split_notices
from megatune.data.quality_picture import draw_or_tell
from megatune.data.sampler import total_steps
from megatune.engine.base import TrainingEngine
from megatune.engine.dtypes import DTYPES
from megatune.engine.make import make_engine
from megatune.engine.start import enter, leave, seed_everything, share_object
from megatune.engine.world import World, check_degrees, make_world
from megatune.errors import MegatuneError
from megatune.evaluate.exam import Exam
from megatune.evaluate.loss_check import choose_loss
from megatune.evaluate.reach_check import check_reach
from megatune.launch.devices import count_gpus
from megatune.launch.environment import environment_report
from megatune.launch.heartbeat import Heart
from megatune.launch.planned_run import PlannedRun, plan_start
from megatune.launch.rank_info import RankInfo
from megatune.launch.ranks import own_slurm_job, own_start_names, record_collectives
from megatune.launch.run_folder import RunFolder
from megatune.launch.run_lock import training_alone
from megatune.launch.time_limit import JobEnd
from megatune.model.left_out import left_out_notes
from megatune.model.quiet import quiet_libraries
from megatune.plan.answer import saves_notes
from megatune.plan.buckets import sizes_for
from megatune.plan.ds_config import make_ds_config, read_policy
from megatune.report.metrics import read_metrics
from megatune.report.records import PlanRecord, RunRecord
from megatune.report.tables import to_json
from megatune.train.beating import beating
from megatune.train.evaluating import Evaluations, marking_of, set_exams
from megatune.train.inputs import Inputs, open_inputs, open_tokenizer, prepare_inputs, prepared_folders
from megatune.train.launched import prepare_launched_rank
from megatune.train.loop import DONE, STOPPED_EARLY, TrainingLoop
from megatune.train.memory import MemoryMeter
from megatune.train.meters import Meter, device_name, kernels_used, peak_flops
from megatune.train.out_of_memory import explained, is_out_of_memory
from megatune.train.place import Place, find_place
from megatune.train.reporting import Reporter
from megatune.train.stopping import Stopping, StopRequest
from megatune.train.unchanged_data import refuse_changed_data
from megatune.units import counted


def train_rank(loaded: LoadedRun, rank: RankInfo, stop: StopRequest | None = None) -> int:
    """Run this rank of a training job to its end. Returns the exit code. Collective: every rank calls it.

    stop: what listens to signals already; without one this does. Raises ConfigError on the first rank when another
    training goes on in the run folder.
    """
    started = time.monotonic()
    quiet_libraries()
    stop = stop or StopRequest()
    restore = stop.listen()
    try:
        prepare_launched_rank(loaded, rank)
        if not loaded.auto:
            lay_out(
                loaded.run, rank.world_size
            )  # what is wrong with it is found before anything is waited for
        folder = RunFolder(loaded.run.train.output_dir)
        with training_alone(folder, say=_say) if rank.rank == 0 else nullcontext():
            if rank.rank == 0 and loaded.run.checkpoint.resume != "auto":
                own_start_names().forget_others(folder.begun)
            return _train_rank(loaded, rank, folder, stop, started)
    finally:
        restore()


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _train_rank(
    loaded: LoadedRun, rank: RankInfo, folder: RunFolder, stop: StopRequest, started: float
) -> int:
    run = loaded.run
    # The first rank prepares and plans before it joins: the others wait in the rendezvous, not in a collective.
    # Several nodes are not to wait for that one process: there it only finds what was prepared before.
    prepared = prepare_inputs(run, folder, may_make=rank.nodes == 1) if rank.rank == 0 else None
    planned = _plan(loaded, rank, prepared) if prepared is not None else None
    notices = [] if prepared is None else _look_at_data(prepared, folder)
    if count_gpus():
        record_collectives(folder.heartbeats)
    device = enter(rank, timeout_s=run.launch.timeout_s)
    loaded, sizes = share_object(
        planned and prepared and (planned.loaded, sizes_for(prepared.source.config_dict()))
    )
    run = loaded.run
    batch, ds_config = lay_out(run, rank.world_size, sizes)
    if planned is not None and prepared is not None:
        num_steps = total_steps(run, prepared.train.num_rows, batch.global_sequences)
        write_run_folder(folder, planned, ds_config, num_steps)
    world = make_world(run.parallel.tp_size, device, timeout_s=run.launch.timeout_s)
    inputs = _share_inputs(run, prepared, rank, world)
    place = find_place(rank, own_slurm_job(), world)
    if world.any_rank(stop.asked_by is not None):  # before the weights are read: that may take minutes
        code = STOPPED_EARLY
    else:
        with beating(run, rank, folder) as heart:
            startup = time.monotonic() - started
            begun = _Start(
                run=run,
                batch=batch,
                ds_config=ds_config,
                inputs=inputs,
                folder=folder,
                world=world,
                place=place,
                stop=stop,
                heart=heart,
                memory=MemoryMeter(device),
                planned=planned,
                notices=notices,
                startup_seconds=startup,
            )
            code = _train_or_explain(begun, loaded, rank)
    world.barrier()  # srun and mpirun kill what still works when one rank has ended with 75
    # Not after an error: leaving waits for the others, who may wait for this rank. The launcher ends them.
    leave()
    return code


def _look_at_data(prepared: Inputs, folder: RunFolder) -> list[str]:
    """What the user should know of the data, which is drawn. Not in a collective: it may read hashes of all rows."""
    draw_or_tell(prepared.splits, folder.data_picture)
    return split_notices(prepared.splits)


def lay_out(
    run: Run, world_size: int, sizes: Mapping[str, int] | None = None
) -> tuple[BatchShape, dict[str, object]]:
    """The batch and DeepSpeed's configuration on so many ranks. Raises ConfigError for what cannot be."""
    check_degrees(world_size, run.parallel.tp_size)
    batch = resolve_batch(run, world_size // run.parallel.tp_size)
    return batch, make_ds_config(run, batch, read_policy(run.deepspeed), sizes)


def _plan(loaded: LoadedRun, rank: RankInfo, prepared: Inputs) -> PlannedRun:
    head = prepared.source.head
    return plan_start(
        loaded,
        prepared.source.config_dict(),
        num_nodes=rank.nodes,
        ranks_per_node=rank.local_world_size,
        num_classes=None if head is None else len(head.labels),
    )


def _share_inputs(run: Run, prepared: Inputs | None, rank: RankInfo, world: World) -> Inputs:
    shared = (prepared_folders(prepared), prepared.options) if prepared else None
    folders, options = world.broadcast_object(shared)
    inputs = prepared or open_inputs(run, folders, options)
    refuse_changed_data(list(inputs.splits.values()), rank.local_rank, world)
    return inputs


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a rank has when it begins to build its engine."""

    run: Run
    batch: BatchShape
    ds_config: dict[str, object]
    inputs: Inputs
    folder: RunFolder
    world: World
    place: Place
    stop: StopRequest
    heart: Heart
    memory: MemoryMeter
    planned: PlannedRun | None
    """The first rank's."""
    notices: list[str]
    """What the user should know of the data, on the first rank."""
    startup_seconds: float


def _train_or_explain(start: _Start, loaded: LoadedRun, rank: RankInfo) -> int:
    """`_train`; a rank that has no memory left says what it held and what would fit. Collective."""
    try:
        return _train(start)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        planned = start.planned or _plan_again(loaded, rank, start.inputs)
        raise explained(error, planned, start.memory, rank.rank) from None


def _plan_again(loaded: LoadedRun, rank: RankInfo, inputs: Inputs) -> PlannedRun | None:
    try:
        return _plan(loaded, rank, inputs)
    except (MegatuneError, MemoryError):
        return None  # the error in hand is the one to tell


def _train(start: _Start) -> int:
    run, world, batch, memory = start.run, start.world, start.batch, start.memory
    seed_everything(run.train.seed, world)
    load_started = time.monotonic()
    engine = make_engine(run, start.inputs.source, world, start.ds_config)
    memory.held_bytes = engine.held_bytes
    steps = total_steps(run, start.inputs.train.num_rows, batch.global_sequences)
    reporter = Reporter(run, start.folder, steps, world)
    try:
        loss = choose_loss(engine, run.train.chunked_loss)
        _describe(start, engine, steps, reporter, load_seconds=time.monotonic() - load_started)
        reporter.note(loss)
        _tell_plan(start.planned, reporter)
        if run.model.head == "lm":
            reporter.note(check_reach(engine, packed=run.packs))
        meter = Meter(
            built=engine.built,
            gradient_checkpointing=run.model.gradient_checkpointing is True,
            num_devices=world.size,
            peak_flops=peak_flops(world.device, DTYPES[run.precision]),
        )
        seed_everything(run.train.seed, world)
        loop = TrainingLoop(
            run,
            engine,
            batch,
            start.inputs.train,
            _evaluations(run, batch, engine, start.inputs, start.folder, reporter),
            folder=start.folder,
            reporter=reporter,
            meter=meter,
            stopping=_stopping(run, start.stop, start.place, reporter, world),
            heart=start.heart,
            memory=memory,
        )
        code = loop.run()
        if code == DONE and run.checkpoint.export_at_end:
            start.heart.beat("export")
            _export(run, loop, start.folder, reporter, world)
    finally:
        reporter.close()
    return code


def _evaluations(
    run: Run, batch: BatchShape, engine: TrainingEngine, inputs: Inputs, folder: RunFolder, reporter: Reporter
) -> Evaluations:
    """The first rank reads texts into tokens and back; the others are told what it made. Collective."""
    world = engine.world
    micro_batch = run.evaluate.per_device_eval_batch_size or batch.micro
    marking = marking_of(run, inputs.options, micro_batch)
    tokenizer = open_tokenizer(run, inputs.source) if world.is_first else None

    def exams() -> dict[str, Exam]:
        assert tokenizer is not None, "the first rank has one"
        return set_exams(inputs, marking, tokenizer)

    return Evaluations(
        engine=engine,
        marking=marking,
        exams=world.first_rank(exams),
        sets=inputs.splits,
        tokenizer=tokenizer,
        micro_batch=micro_batch,
        folder=folder,
        reporter=reporter,
    )


def _stopping(run: Run, stop: StopRequest, place: Place, reporter: Reporter, world: World) -> Stopping:
    """What makes this rank stop: signals, and on the first rank of a Slurm job its end."""
    if place.job is None or not world.is_first:
        return Stopping(stop)
    end = JobEnd(place.job)

    def seconds_left() -> float | None:
        left_s, remark = end.seconds_left(), end.take_remark()
        if remark is not None:
            reporter.note(f"note: {remark}")
        return left_s

    slurm = run.slurm or SlurmSection()
    stopping = Stopping(stop, seconds_left, unmeasured_save_s=slurm.signal_delay_s)
    stopping.learn(read_metrics(RunFolder(run.train.output_dir).metrics))
    return stopping


def _describe(
    start: _Start, engine: TrainingEngine, steps: int, reporter: Reporter, *, load_seconds: float
) -> None:
    run, world, place, inputs = start.run, start.world, start.place, start.inputs
    reporter.write(
        RunRecord(
            model=run.model.model_name_or_path,
            num_params=engine.built.num_params,
            world_size=world.size,
            data_parallel=world.data_parallel,
            tensor_parallel=world.tensor_parallel,
            zero_stage=run.parallel.zero_stage,
            precision=run.precision,
            device=device_name(world.device),
            total_steps=steps,
            sequences_per_step=start.batch.global_sequences,
            max_seq_length=run.data.max_seq_length,
            labels=inputs.options.labels,
            launcher=place.launcher,
            num_nodes=len(place.hosts),
            hosts=place.hosts,
            job_id=place.job.job_id if place.job else None,
            restart_count=place.job.restart_count if place.job else None,
            startup_seconds=start.startup_seconds,
            load_seconds=load_seconds,
            details={"engine": engine.description, **kernels_used(engine)},
        )
    )
    reporter.note(str(place))
    reporter.note(engine.description)
    if run.model.compile:
        reporter.note("blocks: compiled when they first run, which the first step waits for")
    for name, prepared in inputs.splits.items():
        reporter.note(
            f"{name}: {counted(prepared.num_examples, 'example')} in {counted(prepared.num_rows, 'row')}, "
            f"{prepared.num_tokens} tokens ({prepared.num_targets} targets), "
            f"{prepared.report.fill_ratio:.1%} of the room filled"
        )
    for notice in [*start.notices, *precision_notices(run, inputs), *left_out_notes(engine.built)]:
        reporter.note(f"note: {notice}")


def _tell_plan(planned: PlannedRun | None, reporter: Reporter) -> None:
    """What was expected of this start, for the report to compare with. First rank's `planned`. Collective."""
    record = None if planned is None else planned.record()
    reporter.write(record or PlanRecord())
    if planned is None:
        return
    if planned.choice is not None:
        reporter.note(str(planned.choice))
    if planned.question is not None and planned.judged is not None:
        for note in saves_notes(planned.question, planned.judged):
            reporter.note(note)


def precision_notices(run: Run, inputs: Inputs) -> list[str]:
    """What the user should know about the numbers that training is done in."""
    found = []
    if run.precision == "fp16" and inputs.source.shape.trained_dtype == "bfloat16":
        found.append(
            "precision fp16, but the weights were published in bfloat16: their range does not fit fp16, expect "
            "overflows and skipped steps. precision=bf16 has the same speed and none of this."
        )
    return found


def _export(run: Run, loop: TrainingLoop, folder: RunFolder, reporter: Reporter, world: World) -> None:
    result = loop.final_checkpoint
    if result is not None:
        world.first_rank(lambda: _replace_export(run, folder, result))
        reporter.note(f"exported {folder.export}")


def _replace_export(run: Run, folder: RunFolder, checkpoint: Path) -> None:
    replace_export(checkpoint, folder.export, dtype=DTYPES[run.precision])
    folder.write_text_atomic(folder.exported.name, checkpoint.name + "\n")


def write_run_folder(
    folder: RunFolder, planned: PlannedRun, ds_config: dict[str, object], num_steps: int
) -> None:
    """The files that say what this run is."""
    folder.create()
    folder.write_text_atomic(folder.run_file.name, resolved_yaml(planned.loaded))
    folder.write_text_atomic(folder.plan.name, to_json(planned.as_object(num_steps)) + "\n")
    folder.write_text_atomic(folder.ds_config.name, to_json(ds_config) + "\n")
    folder.write_text_atomic(folder.environment.name, environment_report())
