"""All rows of a split, one after another in this process: what evaluation and the search for labels read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatune.data.read import Source, find_files
from megatune.data.rows import Row, limited

Columns = dict[str, str]


def each_row(sources: Sequence[Source], *, split_name: str, scratch: Path) -> Iterator[tuple[Row, Columns]]:
    """Every row with the names of its source's columns. scratch: for data sets that must be fetched.

    Raises DataError when a path is missing, or a row cannot be read.
    """
    for number, source in enumerate(sources):
        files = find_files(source, split_name=split_name, scratch=scratch / f"source-{number}")
        left = files.max_samples
        for file in files.files:
            # Blocks in order: a row's place is then known without counting lines again.
            for block in limited(file.blocks(in_order=True), left):
                for row in block.rows():
                    yield row, files.columns
                if left is not None:
                    left -= block.num_rows or 0
            if left == 0:
                break
