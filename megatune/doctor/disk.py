"""The run folder as every node sees it: shared, writable, with room for a checkpoint, and how fast."""

import os
import secrets
import shutil
import time
from pathlib import Path

from megatune.data.space import FULL
from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude
from megatune.units import format_bytes, format_duration

_PROBE_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
_APPEARS_S = 8.0  # an NFS client may keep a folder's old contents for its attribute cache's 3 to 60 s


def measure_disk(place: Place) -> Json:
    """Whether the first rank of this node can write there, sees rank 0's file, free bytes and bytes per second.

    Every rank calls it. Rank 0 makes a folder for the probe and removes it after all have answered.
    """
    folder = place.setting.folder
    if place.rank.rank == 0:
        answer = _probe_as_first(place, folder)
    elif place.is_first_of_node:
        token = place.exchange.wait_for("disk/token", place.left_s())
        answer = _probe_as_other(folder, token)
        place.exchange.tell("disk/done", True)
    else:
        answer = {}
    return answer


def _probe_as_first(place: Place, folder: Path) -> Json:
    token = f".doctor-{secrets.token_hex(8)}"
    made_before = folder.exists()
    facts: dict[str, object] = {"folder": str(folder.absolute()), "sees_token": True}
    try:
        (folder / token).mkdir(parents=True)
    except OSError as error:
        place.exchange.put("disk/token", None)
        return {**facts, "writable": False, "error": _words(error)}
    place.exchange.put("disk/token", token)
    try:
        facts |= write_probe(folder, folder / token / "rank-0")
        _wait_for_other_nodes(place)
    finally:
        shutil.rmtree(folder / token, ignore_errors=True)  # another node's probe may come too late
        if not made_before and not any(folder.iterdir()):
            folder.rmdir()
    return facts


def _wait_for_other_nodes(place: Place) -> None:
    """The folder must stay until all have looked; a node that does not answer is named by its own silence."""
    place.exchange.gather("disk/done", place.other_firsts(), max(0.1, place.left_s() - 2.0))


def _probe_as_other(folder: Path, token: str | None) -> Json:
    facts: dict[str, object] = {"folder": str(folder.absolute())}
    if token is None:
        return {**facts, "sees_token": None, "writable": None, "error": None}
    end = time.monotonic() + _APPEARS_S
    while not _lists(folder, token):
        if time.monotonic() > end:
            return {**facts, "sees_token": False, "writable": None, "error": None}
        time.sleep(0.05)
    return {**facts, "sees_token": True, **write_probe(folder, folder / token / secrets.token_hex(8))}


def _lists(folder: Path, name: str) -> bool:
    """Whether `name` is in `folder`. Listed, not looked up: an NFS client remembers for long what was not there."""
    try:
        return any(path.name == name for path in folder.iterdir())
    except FileNotFoundError:
        return False


def write_probe(folder: Path, file: Path) -> dict[str, object]:
    """Write up to 64 MiB, but at most a quarter of what is free, wait until it is on the disk, remove it."""
    free_bytes = shutil.disk_usage(folder).free
    num_bytes = min(_PROBE_BYTES, free_bytes // 4)
    chunk = os.urandom(_CHUNK_BYTES)  # file systems that compress would write zeros at any speed
    begun = time.monotonic()
    try:
        with file.open("wb", buffering=0) as out:
            left = num_bytes
            while left > 0:
                left -= out.write(chunk[: min(left, _CHUNK_BYTES)])
            os.fsync(out.fileno())
        seconds = time.monotonic() - begun
    except OSError as error:
        return {"writable": False, "error": _words(error), "free_bytes": free_bytes}
    finally:
        file.unlink(missing_ok=True)
    speed = num_bytes / seconds if num_bytes > 2**20 else None  # of less only the latency would be seen
    return {"writable": True, "error": None, "free_bytes": free_bytes, "bytes_per_s": speed}


def _words(error: OSError) -> str:
    return "no space left, or a quota is used up" if error.errno in FULL else str(error.strerror or error)


def judge_disk(answers: Answers, group: Group, checkpoint_bytes: int | None) -> Finding:
    """A folder that is not shared, not writable or too small for one checkpoint fails."""
    by_node = group.of_first_ranks(answers)
    problems = [
        problem
        for node, facts in by_node.items()
        for problem in _node_problems(facts, node, group, checkpoint_bytes)
    ]
    free = [facts["free_bytes"] for facts in by_node.values() if "free_bytes" in facts]
    known = [facts["bytes_per_s"] for facts in by_node.values() if facts.get("bytes_per_s")]
    total = sum(known) or None
    save_s = checkpoint_bytes / total if checkpoint_bytes and total else None
    measured = {
        "free_bytes": min(free, default=None),
        "checkpoint_bytes": checkpoint_bytes,
        "bytes_per_s": total,
        "save_s": save_s,
    }
    good = (
        f"{format_bytes(measured['free_bytes'])} free, a checkpoint takes {format_bytes(checkpoint_bytes)}; "
        f"{format_bytes(total)}/s from all nodes together"
        + (f", so at least {format_duration(save_s)} a save" if save_s else "")
    )
    return conclude(problems, good=good, measured=measured, by_node=by_node)


def _node_problems(facts: Json, node: str, group: Group, checkpoint_bytes: int | None) -> list[Problem]:
    folder, first = facts["folder"], group.nodes.get(0, "rank 0's host")
    if facts.get("sees_token") is False:
        return [
            Problem(
                verdict="fail",
                text=f"{node} does not see what {first} wrote: {folder} is not the same folder on both",
                fix="Set train.output_dir to an absolute path on a file system that all nodes share.",
            )
        ]
    if facts.get("writable") is False:
        return [
            Problem(
                verdict="fail",
                text=f"{node} cannot write to {folder}: {facts['error']}",
                fix="Set train.output_dir to a folder that you can write to, or free space there.",
            )
        ]
    free_bytes = facts.get("free_bytes")
    if free_bytes is not None and free_bytes < _PROBE_BYTES:
        return [
            Problem(
                verdict="fail",
                text=f"{node} sees {format_bytes(free_bytes)} free in {folder}: no run fits there",
                fix="Free space, or set train.output_dir to a larger file system.",
            )
        ]
    if checkpoint_bytes is not None and free_bytes is not None and free_bytes < checkpoint_bytes:
        return [
            Problem(
                verdict="fail",
                text=f"{node} sees {format_bytes(free_bytes)} free in {folder}, and one checkpoint takes "
                f"{format_bytes(checkpoint_bytes)}",
                fix="Free space, or set train.output_dir to a larger file system.",
            )
        ]
    return []
