"""Rows that the `datasets` package reads: parquet files, folders of data files, hub data sets.

The caller hands in a cache folder of its own for each call: nothing is written to or locked in the
user's home, where a lock on a network file system is either slow or silently ignored.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from megatune.data.space import FULL
from megatune.data.textfiles import Row
from megatune.errors import DataError


def parquet_rows(file: Path, cache_folder: Path) -> Iterator[Row]:
    """Rows of one parquet file. Raises DataError when it is none."""
    found = _load(f"{file} as parquet", "parquet", data_files=[str(file)], split="train", cache=cache_folder)
    for number, values in enumerate(found, start=1):
        yield Row(dict(values), f"{file} (row {number})")


def dataset_rows(path: str, split: str, cache_folder: Path) -> Iterator[Row]:
    """Rows of one split of a folder or of a hub id, which may end in `@revision`.

    A folder may hold data files or what `Dataset.save_to_disk` writes. Raises DataError when there
    is no such data set or split, or no way to the hub.
    """
    if Path(path).is_dir():
        found = _folder(Path(path), split, cache_folder)
    else:
        name, _, revision = path.partition("@")
        what = f"{path}[{split}] from the hub (nothing of that name is in {Path.cwd()})"
        found = _load(what, name, split=split, revision=revision or None, cache=cache_folder)
    for number, values in enumerate(found, start=1):
        yield Row(dict(values), f"{path}[{split}] (row {number})")


def _folder(folder: Path, split: str, cache_folder: Path) -> Any:
    if (folder / "dataset_dict.json").exists():
        return _one_of(datasets.load_from_disk(str(folder)), split, folder)
    if (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    return _load(f"{folder}[{split}]", str(folder.resolve()), split=split, cache=cache_folder)


def _one_of(splits: Mapping[str, Any], split: str, folder: Path) -> Any:
    if split not in splits:
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _load(what: str, *args: Any, cache: Path, **kwargs: Any) -> Any:
    showed_progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # many small files would fill a log with bars
    try:
        return datasets.load_dataset(*args, cache_dir=str(cache), **kwargs)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise cause from error
        raise DataError(f"cannot read {what}: {cause}") from error
    finally:
        if showed_progress:
            datasets.enable_progress_bars()
