"""How many sequences make one optimizer step, and how they are spread over ranks and micro-batches."""

from dataclasses import dataclass

from megatune.config.run import Run
from megatune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """One optimizer step: `global_sequences` = `micro` x `accumulation` x data-parallel ranks."""

    micro: int
    """Sequences in one forward of one data-parallel rank."""
    accumulation: int
    """Micro-batches in one step of one data-parallel rank."""
    global_sequences: int
    """Sequences in one step over all ranks."""


def resolve_batch(run: Run, data_parallel: int) -> BatchShape:
    """The batch that `run` asks for on `data_parallel` ranks (tensor-parallel groups count once).

    Raises ConfigError with the nearest allowed values when global_batch_size or tokens_per_step does not
    divide into whole micro-batches.
    """
    if data_parallel < 1:
        raise ValueError(f"data_parallel is {data_parallel}; there is at least one rank")
    micro = run.train.per_device_train_batch_size
    asked = _asked_sequences(run)
    if asked is None:
        accumulation = run.train.gradient_accumulation_steps or 1
    else:
        accumulation = _accumulation(run, asked, micro, data_parallel)
    return BatchShape(
        micro=micro, accumulation=accumulation, global_sequences=micro * accumulation * data_parallel
    )


def _asked_sequences(run: Run) -> int | None:
    if run.train.global_batch_size is not None:
        return run.train.global_batch_size
    if run.train.tokens_per_step is not None:
        return run.train.tokens_per_step // run.data.max_seq_length
    return None


def _accumulation(run: Run, asked: int, micro: int, data_parallel: int) -> int:
    one_pass = micro * data_parallel
    if asked % one_pass == 0:
        return asked // one_pass
    near = [value for value in (asked // one_pass * one_pass, -(-asked // one_pass) * one_pass) if value]
    key, unit = "global_batch_size", 1
    if run.train.tokens_per_step is not None:
        key, unit = "tokens_per_step", run.data.max_seq_length
    raise ConfigError(
        [
            f"train.{key} = {asked * unit} does not divide into whole micro-batches: "
            f"train.per_device_train_batch_size {micro} x {data_parallel} data-parallel ranks"
            f"{f' x data.max_seq_length {unit}' if unit > 1 else ''} = {one_pass * unit}. "
            f"Use {' or '.join(str(value * unit) for value in near)}, or another micro-batch."
        ]
    )
