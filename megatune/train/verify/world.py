"""One rank of a world that is compared: `python -m megatune.train.verify.world TASK.json`."""

import sys
from dataclasses import replace
from pathlib import Path

from megatune.config import BatchShape, Run, load_run
from megatune.data.batches import step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import position_of_step, total_steps
from megatune.engine.accelerator import own_device
from megatune.engine.base import Engine
from megatune.engine.dtypes import DTYPES
from megatune.engine.make import make_engine
from megatune.engine.plain import PlainEngine
from megatune.engine.start import join, leave
from megatune.engine.world import single_world
from megatune.errors import MegatuneError
from megatune.evaluate.reach_check import check_reach
from megatune.launch.ranks import RankInfo, discover_rank
from megatune.model.build import build_model
from megatune.model.heads import HeadSpec
from megatune.model.quiet import quiet_libraries
from megatune.model.source import ModelSource, open_source
from megatune.plan.buckets import sizes_for
from megatune.plan.ds_config import make_ds_config, read_policy
from megatune.train.meters import peak_memory_bytes
from megatune.train.schedule import learning_rate_at
from megatune.train.step import StepResult, train_step
from megatune.train.verify.model import refuse_too_large
from megatune.train.verify.task import WorldTask, read_task
from megatune.train.verify.trace import Trace, write_trace, write_weights

_MOST_ATTEMPTS = 40
"""An fp16 loss scale starts at 2^16 and is halved at every second overflow: by then it is far below 1."""


def run_world(task: WorldTask, rank: RankInfo) -> None:
    """Take the steps of `task` as this rank and leave a trace. Collective: every rank calls it."""
    run = load_run(Path(task.run_file), task.overrides).run
    quiet_libraries()
    source = open_source(Path(task.model), trust_remote_code=run.model.trust_remote_code)
    if task.head is not None:
        source = replace(source, head=HeadSpec.from_fields(task.head))
    try:
        engine = (
            _plain_engine(run, source) if task.is_reference else _own_engine(run, source, task.batch, rank)
        )
        if run.model.head == "lm":
            check_reach(engine, packed=run.packs)
        _record(engine, run, task)
    finally:
        leave()


def _plain_engine(run: Run, source: ModelSource) -> PlainEngine:
    device = own_device()
    refuse_too_large(run, source, device)
    built = build_model(
        source,
        # fp16 needs a loss scale that plain torch has not got, so its reference is exact instead.
        dtype=DTYPES["bf16" if run.precision == "bf16" else "fp32"],
        initialize=run.model.initialize,
        attn_implementation=run.model.attn_implementation,
        seed=run.train.seed,
    )
    return PlainEngine(built, single_world(device), run.train)


def _own_engine(run: Run, source: ModelSource, batch: BatchShape, rank: RankInfo) -> Engine:
    world = join(rank, tensor_parallel=run.parallel.tp_size, timeout_s=run.launch.timeout_s)
    sizes = sizes_for(source.config_dict())
    return make_engine(run, source, world, make_ds_config(run, batch, read_policy(run.deepspeed), sizes))


def _record(engine: Engine, run: Run, task: WorldTask) -> None:
    folder, keep = Path(task.trace), engine.world.is_first
    prepared = PreparedSet.open(Path(task.prepared))
    initial = engine.weights(master=True) if task.is_reference else iter(())
    before = write_weights(folder / "before", initial, keep=keep)
    trace = trace_steps(engine, run, task.batch, prepared, task.num_steps)
    after = write_weights(folder / "after", engine.weights(master=True), keep=keep)
    if keep:
        write_trace(folder, replace(trace, weights=after, initial_weights=before))


def trace_steps(engine: Engine, run: Run, batch: BatchShape, prepared: PreparedSet, num_steps: int) -> Trace:
    """Take the first `num_steps` steps of the run, at its own learning rates. Collective."""
    results, rates, skipped = [], [], 0
    steps_of_run = total_steps(run, prepared.num_rows, batch.global_sequences)
    for step in range(num_steps):
        rate = learning_rate_at(step, run.train, steps_of_run)
        result, overflows = _settled_step(engine, run, batch, prepared, step, rate)
        results.append(result)
        rates.append(rate)
        skipped += overflows
    return Trace(
        engine=engine.description,
        losses=[result.loss for result in results],
        grad_norms=[float("nan") if r.outcome.grad_norm is None else r.outcome.grad_norm for r in results],
        learning_rates=rates,
        skipped=skipped,
    )


def _settled_step(
    engine: Engine, run: Run, batch: BatchShape, prepared: PreparedSet, step: int, rate: float
) -> tuple[StepResult, int]:
    """One step that changed the weights, and the attempts that overflowed before it.

    fp16 finds its loss scale by overflowing; an exact reference never does. So that both take the
    same steps, a skipped one is taken again on the same rows.
    """
    world = engine.world
    for attempt in range(_MOST_ATTEMPTS):
        batches = step_batches(
            prepared,
            position_of_step(step, num_rows=prepared.num_rows, global_rows=batch.global_sequences),
            seed=run.train.seed,
            micro_batch=batch.micro,
            accumulation=batch.accumulation,
            data_parallel=world.data_parallel,
            dp_rank=world.data_rank,
        )
        memory = peak_memory_bytes(world.device)
        result = train_step(engine, batches, rate, stop_asked=False, peak_memory_bytes=memory)
        if not result.outcome.skipped:
            return result, attempt
    raise MegatuneError(
        f"step {step + 1} overflowed {_MOST_ATTEMPTS} times in a row: these weights have no fp16 training. "
        "Use precision=bf16."
    )


def main(path: str) -> int:
    """Be the rank that the environment names. Returns the exit code."""
    rank = discover_rank()
    assert rank is not None, "verify_job starts this as a rank"
    try:
        run_world(read_task(Path(path)), rank)
    except MegatuneError as error:
        print(f"megatune: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
