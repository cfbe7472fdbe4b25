"""Which rows a loss covers, where they are not those that a table counts."""

from megatune.data.prepared import PreparedSet
from megatune.data.questions import Questions


def loss_notice(
    num_in_loss: int,
    num_asked: int | None,
    prepared: PreparedSet,
    *,
    with_answers: bool,
    max_rows: int | None,
    num_blank: int,
) -> str | None:
    """How many rows the loss is over and why, where it is not over all that were asked; else None.

    num_asked: rows that were answered; None where answers are not scored. with_answers: the loss came with
    them, of the rows as they were asked; else it is that of the first `max_rows` sequences of `prepared`.
    num_blank: rows that were not asked, because they hold nothing to answer.
    """
    if num_in_loss == num_asked:
        return None
    beyond = f"what a loss is taken on lies beyond data.max_seq_length = {prepared.max_seq_length} tokens"
    if with_answers:
        return (
            None
            if num_asked is None
            else f"the loss is over {num_in_loss} of {num_asked} rows: of the others {beyond}"
        )
    report = prepared.report
    # What was dropped is counted over the whole split, of which only the first rows may have been taken.
    where = " in the whole split" if max_rows is not None and max_rows < report.num_rows_read else ""
    reasons = []
    if report.num_too_long:
        reasons.append(f"{report.num_too_long} too long{where}: {beyond}, or data.long_rows drops them")
    if report.num_empty > num_blank:
        reasons.append(f"{report.num_empty - num_blank} without an answer{where}")
    is_limited = max_rows is not None and max_rows < prepared.num_rows
    if is_limited:
        reasons.append(f"evaluate.max_eval_rows takes the first {max_rows} prepared sequences for it")
    if num_asked is not None and report.num_divided:
        reasons.append(f"{report.num_divided} divided into several{where}")
    if not reasons:
        return None
    return f"the loss is over {_share(num_in_loss, num_asked, prepared, is_limited)} ({'; '.join(reasons)})"


def _share(num_in_loss: int, num_asked: int | None, prepared: PreparedSet, is_limited: bool) -> str:
    report = prepared.report
    if num_asked is not None:
        is_part = num_in_loss <= num_asked
        return f"{num_in_loss} of {num_asked} rows" if is_part else f"{num_in_loss} rows and not {num_asked}"
    if is_limited and report.num_divided:  # which rows the first examples are of is not known
        return f"{num_in_loss} of {prepared.num_examples} examples"
    in_loss = num_in_loss if is_limited else report.num_usable
    return f"{in_loss} of {report.num_usable + report.num_too_long + report.num_empty} rows"


def asking_notices(questions: Questions) -> list[str]:
    """Which rows were not asked, or not asked in full."""
    found = []
    if questions.num_blank:
        found.append(f"rows that hold nothing to answer are left out: {questions.num_blank}")
    if questions.num_cut and questions.rows[0].labelled is None:
        found.append(
            f"prompts without their beginning, for there is room for {questions.max_prompt_tokens} tokens before an "
            f"answer: {questions.num_cut} of {len(questions.rows)}"
        )
    return found
