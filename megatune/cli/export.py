"""`megatune export`."""

from pathlib import Path

from megatune.errors import ConfigError, DataError
from megatune.launch.run_folder import RunFolder
from megatune.units import format_count


def export_run(source: Path, target: Path, dtype: str) -> None:
    """Export a run's newest whole checkpoint, or the checkpoint given."""
    from megatune.checkpoint.export import export_checkpoint
    from megatune.engine.dtypes import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(
            [f"--dtype is {dtype!r}. Use one of {', '.join(DTYPES)}."], source="megatune export"
        )
    checkpoint = find_source(source)
    count = export_checkpoint(checkpoint, target, dtype=DTYPES[dtype])
    print(f"exported {checkpoint} to {target}: {format_count(count)} parameters in {dtype}")


def find_source(source: Path) -> Path:
    """The checkpoint folder that `source` is, or the newest whole one of the run folder that it is."""
    from megatune.checkpoint.folders import newest_whole
    from megatune.checkpoint.layout import MANIFEST

    if (source / MANIFEST).is_file():
        return source
    checkpoint, passed_over = newest_whole(RunFolder(source).checkpoints)
    for reason in passed_over:
        print(f"passed over {reason}")
    if checkpoint is None:
        raise DataError(f"{source} is neither a checkpoint nor a run folder with one (checkpoints/step-...).")
    return checkpoint
