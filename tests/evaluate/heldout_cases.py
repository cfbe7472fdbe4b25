"""What ranks do in the tests of the held-out loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from parity_steps import plain_engine, tiny_run, world_of, zero_engine
from tiny_models import VOCABULARY

from megatune.data.prepared import PreparedSet
from megatune.data.quality import Report
from megatune.evaluate.heldout import held_out_loss

NUM_ROWS = 9


def rows_of(num_rows: int) -> PreparedSet:
    """The first rows of a set of very different lengths and numbers of targets; one has no target."""
    draw = np.random.default_rng(2)
    lengths = [3, 20, 7, 31, 2, 14, 26, 5, 9][:num_rows]
    offsets = np.cumsum([0, *lengths])
    shares = [1.0, 0.1, 0.5, 0.9, 1.0, 0.0, 0.3, 1.0, 0.7]
    is_target = np.concatenate([draw.random(n) < share for n, share in zip(lengths, shares, strict=False)])
    return PreparedSet(
        folder=Path("in-memory"),
        fingerprint="",
        num_rows=num_rows,
        num_examples=num_rows,
        num_tokens=int(offsets[-1]),
        num_targets=int(is_target.sum()),
        max_token_id=VOCABULARY - 1,
        max_seq_length=32,
        packed=False,
        pad_id=0,
        report=Report(**dict.fromkeys(Report.__dataclass_fields__, 0)),  # nothing here reads it
        arrays={
            "tokens": np.random.default_rng(3).integers(0, VOCABULARY, sum(lengths), dtype=np.int32),
            "is_target": is_target,
            "example_offsets": offsets,
            "row_examples": np.arange(num_rows, dtype=np.int32),
            "row_offsets": np.arange(num_rows + 1),
        },
    )


def losses_of_rows(folder: str) -> list[tuple[float, int]]:
    """Each row alone, in one process: (sum of its losses, number of its targets)."""
    engine = plain_engine(tiny_run(folder))
    found = []
    for number in range(NUM_ROWS):
        row = rows_of(NUM_ROWS)
        part = held_out_loss(engine, _only(row, number), micro_batch=1)
        found.append(((part.loss or 0.0) * part.target_tokens, part.target_tokens))
    return found


def loss_without_targets(folder: str) -> tuple[float | None, float | None, int]:
    """(loss, perplexity, targets) of a split whose only row has no target."""
    found = held_out_loss(plain_engine(tiny_run(folder)), _only(rows_of(NUM_ROWS), 5), micro_batch=1)
    return found.loss, found.perplexity, found.target_tokens


def _only(rows: PreparedSet, number: int) -> PreparedSet:
    arrays = {**rows.arrays, "row_examples": rows.arrays["row_examples"][number : number + 1]}
    return replace(rows, num_rows=1, arrays={**arrays, "row_offsets": np.arange(2)})


def held_out_losses(
    folder: str, tp: int, settings: list[dict[str, Any]], *, chunked: bool = True
) -> list[tuple[float | None, int, tuple[float, float] | None]]:
    """(loss, targets, interval) for each setting: num_rows, micro_batch, max_rows."""
    engine = zero_engine(tiny_run(folder, tp), world_of(tp))
    engine.chunked_loss = chunked
    found = []
    for setting in settings:
        part = held_out_loss(
            engine,
            rows_of(setting["num_rows"]),
            micro_batch=setting["micro_batch"],
            max_rows=setting["max_rows"],
        )
        found.append((part.loss, part.target_tokens, part.interval))
    return found
