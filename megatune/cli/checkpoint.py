"""`megatune checkpoint list`, `verify` and `prune`. None of them loads torch."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatune.checkpoint.folders import best_of, prunable, prune, whole_and_passed_over
from megatune.checkpoint.manifest import read_manifest
from megatune.checkpoint.verify import verify_checkpoint
from megatune.errors import DataError
from megatune.launch.checkpoints import MANIFEST, finished
from megatune.launch.run_folder import RunFolder
from megatune.report.tables import render_table, show
from megatune.units import format_bytes

SCHEMA = 1


def list_checkpoints(run: Path, *, as_json: bool) -> None:
    """Print the checkpoints of a run, newest first. Raises DataError when it has none."""
    checkpoints = _checkpoints_of(run)
    whole, passed_over = whole_and_passed_over(checkpoints)
    best = best_of(checkpoints)
    entries: list[dict[str, Any]] = [_describe(folder, best) for folder in whole]
    entries += [{"step": step, "whole": False, "problem": problem} for step, problem in passed_over]
    entries.sort(key=lambda entry: -int(entry["step"]))
    rows = [
        {
            "step": entry["step"],
            "saved at": entry.get("layout"),
            "size": format_bytes(entry["num_bytes"]) if entry["whole"] else None,
            "written": entry.get("written"),
            "note": entry.get("problem")
            or ", ".join(name for name in ("best", "kept for ever") if entry[name]),
        }
        for entry in entries
    ]
    show({"schema": SCHEMA, "checkpoints": entries}, render_table(rows), as_json=as_json)


def _describe(folder: Path, best: Path | None) -> dict[str, Any]:
    manifest = read_manifest(folder)
    written = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
    return {
        "step": manifest.step,
        "whole": True,
        "path": str(folder),
        "layout": str(manifest.layout),
        "accumulation": manifest.layout.accumulation,
        "num_bytes": manifest.num_bytes,
        "written": written.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "data": dict(manifest.data),
        "versions": dict(manifest.versions),
        "best": folder == best,
        "kept for ever": manifest.kept_for_ever,
    }


def verify_checkpoints(path: Path, *, as_json: bool) -> int:
    """Print what is wrong with a checkpoint, or with each of a run. Returns 1 when something is, else 0."""
    folders = [path] if (path / MANIFEST).is_file() else sorted(finished(_checkpoints_of(path)))
    found = [verify_checkpoint(folder) for folder in folders]
    broken = any(each.problems for each in found)
    rows = [
        {
            "checkpoint": str(each.folder),
            "read": format_bytes(each.num_bytes) if each.num_bytes is not None else None,
            "speed": f"{format_bytes(each.num_bytes / each.seconds)}/s" if each.num_bytes else None,
            "result": " ".join(each.problems) or "every byte as it was written",
        }
        for each in found
    ]
    answer = {
        "schema": SCHEMA,
        "checkpoints": [{**asdict(each), "folder": str(each.folder)} for each in found],
        "passed": not broken,
    }
    show(answer, render_table(rows), as_json=as_json)
    return 1 if broken else 0


def prune_checkpoints(run: Path, *, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove all but the newest `keep` checkpoints of a run and the protected ones, and print which."""
    checkpoints = _checkpoints_of(run)
    best = best_of(checkpoints)
    protected = {best} if best is not None else set()
    doomed = prunable(checkpoints, keep, protected=protected)
    sizes = {folder: read_manifest(folder).num_bytes for folder in doomed}
    removed = doomed if dry_run else prune(checkpoints, keep, protected=protected)
    num_bytes = sum(sizes[folder] for folder in removed)
    words = "would be removed" if dry_run else "removed"
    rows = [{words: str(folder), "size": format_bytes(sizes[folder])} for folder in removed]
    answer = {
        "schema": SCHEMA,
        "dry_run": dry_run,
        "removed": [str(folder) for folder in removed],
        "num_bytes": num_bytes,
    }
    line = f"{len(removed)} checkpoints {words}, {format_bytes(num_bytes)}"
    show(answer, *([render_table(rows)] if rows else []), line, as_json=as_json)


def _checkpoints_of(run: Path) -> Path:
    checkpoints = RunFolder(run).checkpoints
    if not checkpoints.is_dir():
        raise DataError(f"{run} is no run folder: it has no {checkpoints.name}. Give a train.output_dir.")
    return checkpoints
