"""Positions a step computes for each token, of rows that are not packed: as they come, and by length within the step.

    megatune prepare assets/dialogue.yaml data.packing=false train.output_dir=/tmp/rows
    python benchmarks/padding.py /tmp/rows/prepared/*

Counts; nothing is trained. "Waiting" takes each rank to have as many positions as the one that has most of the step's.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatune.data.prepared import PreparedSet
from megatune.data.sampler import RowNumbers, epoch_order, micro_batch_rows

LAYOUTS = [(1, 1, 2), (1, 8, 8), (4, 1, 2), (4, 2, 2), (4, 8, 2), (2, 8, 8), (8, 4, 8)]
_MULTIPLE = 8
"""Rows are padded to a multiple of it (`collate`)."""


@dataclass(frozen=True)
class Layout:
    micro: int
    accumulation: int
    data_parallel: int

    @property
    def global_rows(self) -> int:
        return self.micro * self.accumulation * self.data_parallel


def as_they_come(rows: RowNumbers, layout: Layout, rank: int) -> list[RowNumbers]:
    mine = rows[rank :: layout.data_parallel]
    return [mine[i * layout.micro : (i + 1) * layout.micro] for i in range(layout.accumulation)]


def positions(lengths: RowNumbers, micro_batches: list[RowNumbers]) -> int:
    widths = [
        -(-int(lengths[rows].max()) // _MULTIPLE) * _MULTIPLE * len(rows)
        for rows in micro_batches
        if len(rows)
    ]
    return sum(widths)


def count(prepared: PreparedSet, layout: Layout, *, by_length: bool) -> tuple[float, float]:
    """Positions a token, and the same with waiting, of one epoch."""
    lengths, order = prepared.row_lengths(prepared.num_rows), epoch_order(prepared.num_rows, seed=42, epoch=0)
    tokens = computed = waited = 0
    for step, start in enumerate(range(0, len(order), layout.global_rows)):
        rows = order[start : start + layout.global_rows]
        if by_length:
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
        shares = [
            positions(
                lengths,
                micro_batch_rows(
                    rows,
                    micro_batch=layout.micro,
                    accumulation=layout.accumulation,
                    data_parallel=layout.data_parallel,
                    dp_rank=rank,
                    turn=step,
                )
                if by_length
                else as_they_come(rows, layout, rank),
            )
            for rank in range(layout.data_parallel)
        ]
        tokens += int(lengths[rows].sum())
        computed += sum(shares)
        waited += max(shares) * layout.data_parallel
    return computed / tokens, waited / tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path, nargs="+", help="folders of prepared rows")
    for folder in parser.parse_args().prepared:
        prepared = PreparedSet.open(folder)
        print(
            f"{folder}: {prepared.num_rows} rows, {prepared.num_tokens / prepared.num_rows:.0f} tokens each"
        )
        print("| micro x accumulation x dp | positions a token | with waiting |\n|---|---|---|")
        for layout in (Layout(*sizes) for sizes in LAYOUTS):
            before, now = (count(prepared, layout, by_length=flag) for flag in (False, True))
            name = f"{layout.micro} x {layout.accumulation} x {layout.data_parallel}"
            print(f"| {name} | {before[0]:.2f} -> {now[0]:.2f} | {before[1]:.2f} -> {now[1]:.2f} |")


if __name__ == "__main__":
    main()
