"""The best layout at several sequence lengths, with the tokens of a step that the run file has."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatune.config import Run
from megatune.plan.answer import time_values
from megatune.plan.assess import Assessment, Question
from megatune.plan.search import Found, Space, search, why_too_big


@dataclass(frozen=True, kw_only=True)
class AtLength:
    """What one length comes to."""

    seq: int
    best: Assessment | None
    """None where no layout fits, or none keeps the tokens of a step."""
    remark: str
    """Why there is none, or what else must be known; "" where nothing must."""

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        best = self.best
        return {
            "max_seq_length": self.seq,
            "layout": None if best is None else best.layout.to_json(),
            "device_total_bytes": None if best is None else best.ledger.device_total,
            "host_total_bytes": None if best is None else best.ledger.host_total,
            "time": None if best is None else time_values(best),
            "remark": self.remark,
        }


def plan_lengths(
    run: Run, lengths: Sequence[int], tokens_per_step: int, ask: Callable[[Run], Question], space: Space
) -> Iterator[AtLength]:
    """Each of `lengths` in turn; `ask` makes the question of a run, `space` holds what `run` leaves open.

    A length that does not divide the tokens of a step is told, not rounded: the steps would learn from others.
    """
    for seq in lengths:
        if tokens_per_step % seq:
            remark = f"the {tokens_per_step} tokens of a step are no multiple of it"
            yield AtLength(seq=seq, best=None, remark=remark)
            continue
        question = ask(_at_length(run, seq, tokens_per_step // seq))
        found = search(question, space)
        yield AtLength(seq=seq, best=found.best, remark=_remark(question, found))


def _at_length(run: Run, seq: int, sequences: int) -> Run:
    data = run.data.model_copy(update={"max_seq_length": seq})
    batch = {"global_batch_size": sequences, "tokens_per_step": None, "gradient_accumulation_steps": None}
    return run.model_copy(update={"data": data, "train": run.train.model_copy(update=batch)})


def _remark(question: Question, found: Found) -> str:
    if found.best is None:
        if found.too_big:
            return f"no layout fits; the nearest, {found.too_big[0].layout}, {why_too_big(found.too_big[0])}"
        return found.impossible[0].reason if found.impossible else "no layout keeps the tokens of a step"
    positions = question.work.model.shape.max_positions
    beyond = positions is not None and question.work.seq > positions
    return f"beyond the model's {positions} positions" if beyond else ""
