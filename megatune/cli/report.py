"""`megatune report`: of a run, or of bench records."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from megatune.bench.page import case_rows, render_page
from megatune.bench.pictures import draw_record
from megatune.bench.printed import printed_tables, render_tables
from megatune.bench.record import read_record
from megatune.errors import ConfigError, DataError
from megatune.files import write_text_atomic
from megatune.launch.run_folder import RunFolder
from megatune.report.curves import draw_curves
from megatune.report.metrics import read_metrics
from megatune.report.summary import summarise, summary_tables
from megatune.report.tables import show

_CURVES = "curves.png"
"""The name that is proposed for a picture of the curves."""


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
    if picture is None:
        lines.append(Text(f"curves: {shlex.join(['megatune', 'report', str(run), '--picture', _CURVES])}"))
    show({**summary.as_object(), "paths": found}, *summary_tables(summary), *lines, as_json=as_json)


def report_paths(paths: Sequence[Path], *, as_json: bool, picture: Path | None = None) -> None:
    """Report one run folder, or one or more records of `megatune bench`. Raises DataError or ConfigError."""
    are_records = all(path.suffix == ".json" for path in paths)
    if are_records and picture is None:
        report_records(paths, as_json=as_json)
    elif are_records:
        raise ConfigError(
            ["--picture is for runs; the pictures of records are written beside them."],
            source="megatune report",
        )
    elif len(paths) == 1:
        report_run(paths[0], as_json=as_json, picture=picture)
    else:
        raise ConfigError(
            ["give one run folder, or records of `megatune bench` (.json) alone."], source="megatune report"
        )


def report_records(paths: Sequence[Path], *, as_json: bool) -> None:
    """Print the records' tables; write their pictures beside them, and one page of all beside the first."""
    records = [read_record(path) for path in paths]
    drawn = [draw_record(record) for record in records]
    pictures = []
    for path, found in zip(paths, drawn, strict=True):
        for name, png in found.items():
            target = path.with_name(f"{path.stem}-{name}.png")
            target.write_bytes(png)
            pictures.append(str(target))
    page = paths[0].with_suffix(".html")
    write_text_atomic(page, render_page(list(zip(records, drawn, strict=True))))
    answer = {
        "schema": 1,
        "page": str(page),
        "pictures": pictures,
        "records": [
            {
                "suite": record["suite"],
                "cases": case_rows(record),
                "printed": [{"case": case, "rows": rows} for case, rows in printed_tables(record)],
            }
            for record in records
        ],
    }
    tables = [table for record in records for table in render_tables(record, case_rows(record))]
    show(
        answer,
        *tables,
        Text(f"page: {page}"),
        *[Text(f"picture: {each}") for each in pictures],
        as_json=as_json,
    )
