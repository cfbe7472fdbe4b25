"""`megatune checkpoint list`, `verify` and `prune`. None of them loads torch."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatune.checkpoint.folders import best_of, named, prunable, prune, whole_and_passed_over
from megatune.checkpoint.manifest import read_manifest
from megatune.checkpoint.verify import verify_checkpoint
from megatune.errors import DataError
from megatune.launch.checkpoints import MANIFEST, step_of
from megatune.launch.run_folder import RunFolder
from megatune.report.tables import render_table, show
from megatune.units import format_bytes

SCHEMA = 1


def list_checkpoints(run: Path, *, as_json: bool) -> None:
    """Print the checkpoints of a run, newest first. Raises DataError when it has none."""
    checkpoints = _checkpoints_of(run)
    whole, passed_over = whole_and_passed_over(checkpoints)
    best = best_of(whole)
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
    """Print what is wrong with a checkpoint, or with each of a run. Returns 1 when something is, else 0.

    Raises DataError for a run that has none.
    """
    folders = (
        [path]
        if (path / MANIFEST).is_file() or step_of(path) is not None
        else sorted(named(_checkpoints_of(path)))
    )
    if not folders:
        raise DataError(f"{path} has no checkpoint yet: there is nothing to verify.")
    found = [verify_checkpoint(folder) for folder in folders]
    # A training that goes on removes old ones meanwhile.
    found = [each for each in found if not each.problems or each.folder.exists() or each.folder == path]
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
    """Remove all but the newest `keep` checkpoints of a run and the protected ones, and print which.

    Those that are kept for being the newest are read again before: one that is damaged stays, and does not count.
    """
    checkpoints = _checkpoints_of(run)
    whole, _ = whole_and_passed_over(checkpoints)
    damaged = _damaged_among_newest(whole, keep)
    best = best_of([folder for folder in whole if folder not in damaged])
    protected = {best} if best is not None else set()
    doomed = prunable(checkpoints, keep, protected=protected, damaged=damaged)
    sizes = {folder: read_manifest(folder).num_bytes for folder in doomed}
    removed = doomed if dry_run else prune(checkpoints, keep, protected=protected, damaged=damaged)
    num_bytes = sum(sizes[folder] for folder in removed)
    words = "would be removed" if dry_run else "removed"
    rows = [{words: str(folder), "size": format_bytes(sizes[folder])} for folder in removed]
    problems = [problem for found in damaged.values() for problem in found]
    answer = {
        "schema": SCHEMA,
        "dry_run": dry_run,
        "removed": [str(folder) for folder in removed],
        "num_bytes": num_bytes,
        "problems": problems,
    }
    lines = [f"{len(removed)} checkpoints {words}, {format_bytes(num_bytes)}"]
    lines += [f"damaged, left alone and not counted: {problem}" for problem in problems]
    show(answer, *([render_table(rows)] if rows else []), *lines, as_json=as_json)


def _damaged_among_newest(whole: Sequence[Path], keep: int) -> dict[Path, tuple[str, ...]]:
    """What is wrong with which of `whole`, newest first, down to the `keep`th that verifies."""
    num_good, damaged = 0, dict[Path, tuple[str, ...]]()
    for folder in whole:
        if num_good == keep:
            break
        problems = verify_checkpoint(folder).problems
        if problems:
            damaged[folder] = problems
        num_good += not problems
    return damaged


def _checkpoints_of(run: Path) -> Path:
    checkpoints = RunFolder(run).checkpoints
    if not checkpoints.is_dir():
        raise DataError(f"{run} is no run folder: it has no {checkpoints.name}. Give a train.output_dir.")
    return checkpoints
