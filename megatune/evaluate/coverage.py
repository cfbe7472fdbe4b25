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
    num_blank: int = 0,
) -> str | None:
    """How many rows the loss is over and why, where it is not over all that were asked; else None.

    num_asked: rows that were answered; None where answers are not scored. with_answers: the loss came with
    them, of the rows as they were asked; else it is that of the first `max_rows` sequences of `prepared`.
    num_blank: rows that were not asked, because they hold nothing to answer.
    """
    beyond = f"what a loss is taken on lies beyond data.max_seq_length = {prepared.max_seq_length} tokens"
    if with_answers:
        is_whole = num_asked is None or num_in_loss == num_asked
        return (
            None
            if is_whole
            else f"the loss is over {num_in_loss} of {num_asked} rows: of the others {beyond}"
        )
    report = prepared.report
    reasons = []
    if report.num_too_long:
        reasons.append(f"{report.num_too_long} too long: {beyond}, or data.long_rows drops them")
    if report.num_empty > num_blank:
        reasons.append(f"{report.num_empty - num_blank} without an answer")
    if max_rows is not None and max_rows < prepared.num_rows:
        reasons.append(f"evaluate.max_eval_rows takes the first {max_rows} prepared sequences for it")
    if num_in_loss != num_asked and report.num_divided:
        reasons.append(f"{report.num_divided} divided into several")
    if not reasons:
        return None
    every = num_in_loss + report.num_too_long + report.num_empty if num_asked is None else num_asked
    over = f"{num_in_loss} of {every} rows" if num_in_loss <= every else f"{num_in_loss} rows and not {every}"
    return f"the loss is over {over} ({'; '.join(reasons)})"


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
