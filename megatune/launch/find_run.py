"""The run folder that a user means: by its path, or by the run file that trains into it."""

from pathlib import Path

from megatune.config import load_run
from megatune.errors import UserError
from megatune.launch.run_folder import RunFolder


def find_run(path: Path) -> RunFolder:
    """The run folder of `path`, which is one itself or a run file.

    Raises UserError when there is nothing of a run, and ConfigError for a run file with mistakes.
    """
    if path.is_file():
        folder = RunFolder(Path(load_run(path).run.train.output_dir))
        if not _is_run(folder):
            raise UserError(
                f"{path} trains into {folder.path}, where nothing is yet. Start it with `megatune submit {path}` or "
                f"`megatune train {path}`."
            )
        return folder
    folder = RunFolder(path)
    if not path.is_dir():
        raise UserError(f"there is no {path}. Give a run folder (train.output_dir) or a run file.")
    if not _is_run(folder):
        raise UserError(
            f"{path} is no run folder: it has neither {folder.metrics.name} nor {folder.jobs.name} nor logs. Give a "
            "train.output_dir, or a run file."
        )
    return folder


def _is_run(folder: RunFolder) -> bool:
    return any(path.exists() for path in (folder.metrics, folder.jobs, folder.logs))
