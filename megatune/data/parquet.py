"""Rows of parquet files, a batch of columns at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatune.data.rows import BLOCK_ROWS, Block, Place, Row
from megatune.errors import DataError


def parquet_blocks(path: Path, *, label: str = "") -> Iterator[Block]:
    """Blocks of the rows of `path`, called `label` in messages. Raises DataError when it is no parquet file."""
    import pyarrow.lib  # type: ignore[import-untyped]  # half a second
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
        num_bytes = path.stat().st_size / max(1, file.metadata.num_rows)
        before = 0
        for batch in file.iter_batches(batch_size=BLOCK_ROWS, use_threads=False):
            yield Block(_rows(path, batch, before, label), batch.num_rows, round(num_bytes * batch.num_rows))
            before += batch.num_rows
    except pyarrow.lib.ArrowException as error:
        raise DataError(f"cannot read {path} as parquet: {error}") from None


def _rows(path: Path, batch: Any, before: int, label: str) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        try:
            found = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{label or path} (rows {before + 1} to {before + batch.num_rows}): {error}"
            ) from None
        for number, values in enumerate(found, start=before + 1):
            yield Row(values, Place(path, number, label=label))

    return rows
