"""How many steps a run that is planned has: as its run file says, or as its prepared data come to."""

from megatune.config import Run


def steps_of_run(run: Run, global_sequences: int) -> int | None:
    """Optimizer steps of the whole run; None where nobody has counted them.

    Reads no rows: the counts are those that `megatune prepare` left, where nothing has changed since.
    """
    if run.train.max_steps is not None:
        return run.train.max_steps
    from megatune.data.receipt import kept_sets, look
    from megatune.data.sampler import total_steps

    sets = kept_sets(run, look(run))
    return None if sets is None else total_steps(run, sets["train"].num_rows, global_sequences)
