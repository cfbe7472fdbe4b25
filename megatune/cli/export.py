"""`megatune export`, and the export that other commands need of a run."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatune.config import load_run
from megatune.errors import CheckpointError, ConfigError, DataError
from megatune.launch.checkpoints import MANIFEST
from megatune.launch.run_folder import RunFolder
from megatune.units import format_count


def export_run(source: Path, target: Path, dtype: str) -> None:
    """Export a run's newest whole checkpoint, or the checkpoint given."""
    from megatune.engine.dtypes import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(
            [f"--dtype is {dtype!r}. Use one of {', '.join(DTYPES)}."], source="megatune export"
        )
    checkpoint, count = _export(source, target, dtype)
    print(f"exported {checkpoint} to {target}: {format_count(count)} parameters in {dtype}")


@contextmanager
def model_folder(model: Path) -> Iterator[Path]:
    """A Hugging Face folder of the model: of a run its export, or its newest checkpoint, exported for this while.

    An export that the run has trained on from since, or of a run that was there before, is not its model.
    """
    folder = RunFolder(model)
    if not folder.run_file.is_file():
        yield model
        return
    from megatune.checkpoint.folders import newest_whole

    newest, _ = newest_whole(folder.checkpoints)
    if folder.export.is_dir() and (folder.exported.is_file() or newest is None):
        yield folder.export
        return
    if folder.export.is_dir():
        print(f"note: {folder.export} is of an earlier model of this run; taking {newest}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="export-", dir=model) as scratch:
        target = Path(scratch) / "export"
        _export(model, target, load_run(folder.run_file).run.precision)
        yield target


def _export(source: Path, target: Path, dtype: str) -> tuple[Path, int]:
    """(the checkpoint that was exported, its parameters); the next one when a run that goes on removes it meanwhile."""
    from megatune.checkpoint.export import export_checkpoint
    from megatune.engine.dtypes import DTYPES

    while True:
        checkpoint = find_source(source)
        try:
            return checkpoint, export_checkpoint(checkpoint, target, dtype=DTYPES[dtype])
        except (CheckpointError, OSError):
            if checkpoint == source or (checkpoint / MANIFEST).is_file():
                raise
            print(f"{checkpoint} was removed meanwhile; taking the next", file=sys.stderr)


def find_source(source: Path) -> Path:
    """The checkpoint folder that `source` is, or the newest whole one of the run folder that it is."""
    from megatune.checkpoint.folders import newest_whole

    if (source / MANIFEST).is_file():
        return source
    checkpoint, passed_over = newest_whole(RunFolder(source).checkpoints)
    for reason in passed_over:
        print(f"passed over {reason}", file=sys.stderr)
    if checkpoint is None:
        raise DataError(f"{source} is neither a checkpoint nor a run folder with one (checkpoints/step-...).")
    return checkpoint
