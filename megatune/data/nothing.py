"""Sets of which no row has anything that a loss could be taken on."""

from megatune.data.quality import Report
from megatune.errors import DataError


def refuse_nothing(report: Report, split: str, max_seq_length: int, *, may_be_without_loss: bool) -> None:
    """Raise DataError, with what became of the rows, for a set without any example.

    may_be_without_loss: rows that are too long for a loss are taken, for their answers can be scored.
    """
    if report.num_usable or (may_be_without_loss and report.num_too_long):
        return
    is_train = split == "train"
    too_long = (
        f", and {report.num_too_long} are too long: there it begins after data.max_seq_length = {max_seq_length} "
        "tokens, or data.long_rows drops them. Raise data.max_seq_length, cut rows at their beginning "
        "(data.truncation_side: left), or shorten the prompt (data.template)"
    )
    raise DataError(
        f"data.{split} has nothing to {'train on' if is_train else 'take a loss on'}: of {report.num_rows_read} rows "
        f"{report.num_empty} hold no text to {'learn' if is_train else 'score'}"
        f"{too_long if report.num_too_long else ''}"
    )
