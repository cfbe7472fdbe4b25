"""Data sets that the `datasets` package reads, hub ids and what `save_to_disk` wrote, as a parquet file.

The caller hands in a cache folder of its own for each call: nothing is written to or locked in the
user's home, where a lock on a network file system is either slow or silently ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from megatune.data.folders import is_data_set
from megatune.data.space import FULL
from megatune.errors import DataError


def write_parquet(path: str, split: str, target: Path, *, cache_folder: Path) -> None:
    """Write one split of a hub id, which may end in `@revision`, or of a folder of `datasets` to `target`.

    Raises DataError when there is no such data set or split, or no way to the hub.
    """
    showed_progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # many small files would fill a log with bars
    try:
        found = _folder(Path(path), split) if is_data_set(Path(path)) else _hub(path, split, cache_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        found.to_parquet(str(target))
    finally:
        if showed_progress:
            datasets.enable_progress_bars()


def _folder(folder: Path, split: str) -> Any:
    found = datasets.load_from_disk(str(folder))
    return _one_of(found, split, folder) if isinstance(found, dict) else found


def _one_of(splits: Mapping[str, Any], split: str, folder: Path) -> Any:
    if split not in splits:
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _hub(path: str, split: str, cache: Path) -> Any:
    name, _, revision = path.partition("@")
    try:
        return datasets.load_dataset(name, split=split, revision=revision or None, cache_dir=str(cache))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise cause from error
        what = f"{path}[{split}] from the hub (nothing of that name is in {Path.cwd()})"
        raise DataError(f"cannot read {what}: {cause}") from error
