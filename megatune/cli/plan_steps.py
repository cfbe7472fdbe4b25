"""How many steps a run that is planned has: as its run file says, or as its prepared data come to."""

from megatune.config import Run


def steps_of_run(run: Run, global_sequences: int) -> tuple[int | None, str | None]:
    """Optimizer steps of the whole run; where nobody has counted them None, and the note that says what is missing.

    Reads no rows: the counts are those that `megatune prepare` left, where nothing has changed since.
    """
    if run.train.max_steps is not None:
        return run.train.max_steps, None
    from megatune.data.receipt import kept_sets, look
    from megatune.data.sampler import total_steps

    sets = kept_sets(run, look(run))
    if sets is None:
        return None, (
            "no whole-run figures: they need train.max_steps, or prepared data (megatune prepare with this run file), "
            "which are recognised where model and data are files here."
        )
    return total_steps(run, sets["train"].num_rows, global_sequences), None
