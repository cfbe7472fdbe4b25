"""`megatune report`."""

from pathlib import Path

from rich.text import Text

from megatune.errors import DataError
from megatune.launch.run_folder import RunFolder
from megatune.report.curves import draw_curves
from megatune.report.metrics import read_metrics
from megatune.report.summary import summarise, summary_tables
from megatune.report.tables import show


def report_run(run: Path, *, as_json: bool, picture: Path | None = None) -> None:
    """Print the summary of a run folder, and draw the curves of its scores into `picture`."""
    folder = RunFolder(run)
    if not folder.metrics.is_file():
        raise DataError(f"{run} is no run folder: it has no {folder.metrics.name}. Give a train.output_dir.")
    summary = summarise(folder.metrics)
    places = {
        "metrics": folder.metrics,
        "checkpoints": folder.checkpoints,
        "export": folder.export,
        "data": folder.data_picture,
    }
    if picture is not None and draw_curves(read_metrics(folder.metrics), picture):
        places["picture"] = picture
    found = {name: str(path) for name, path in places.items() if path.exists()}
    lines = [Text(f"{name}: {path}") for name, path in found.items()]
    show({**summary.as_object(), "paths": found}, *summary_tables(summary), *lines, as_json=as_json)
