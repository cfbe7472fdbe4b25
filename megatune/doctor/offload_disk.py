"""The local disk of `parallel.offload: nvme:/path` on every node: there, no memory, with room, and how fast."""

import secrets
from pathlib import Path

from megatune.doctor.disk import write_probe
from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude
from megatune.files import IN_MEMORY, file_system_type
from megatune.units import format_bytes


def measure_offload_disk(place: Place) -> Json:
    """What the first rank of a node finds in the folder; {} of the others."""
    folder = place.setting.offload_folder
    if folder is None or not place.is_first_of_node:
        return {}
    facts: dict[str, object] = {"folder": str(folder), "kind": file_system_type(folder)}
    if not folder.is_dir():
        return {**facts, "writable": False, "error": "no such folder"}
    return {**facts, **write_probe(folder, folder / f".doctor-{secrets.token_hex(8)}")}


def judge_offload_disk(answers: Answers, group: Group, states_bytes: int | None) -> Finding:
    """A folder that is missing, in memory or too small for its ranks' part of `states_bytes` fails."""
    by_node = group.of_first_ranks(answers)
    problems, needs = [], []
    for node, facts in by_node.items():
        here = group.num_ranks_on(node)
        needed = None if states_bytes is None else states_bytes * here // max(1, group.world_size)
        needs.append(needed or 0)
        problems += _problems(facts, node, needed)
    speeds = [facts["bytes_per_s"] for facts in by_node.values() if facts.get("bytes_per_s")]
    free = [facts["free_bytes"] for facts in by_node.values() if "free_bytes" in facts]
    slowest, need = min(speeds, default=None), max(needs, default=0) or None
    return conclude(
        problems,
        good=f"{format_bytes(min(free, default=None))} free, the states of a node take {format_bytes(need)}; "
        f"the slowest node writes {format_bytes(slowest)}/s",
        measured={"free_bytes": min(free, default=None), "states_bytes": need, "bytes_per_s": slowest},
        by_node=by_node,
    )


def _problems(facts: Json, node: str, needed: int | None) -> list[Problem]:
    folder = Path(facts["folder"])
    if facts["kind"] in IN_MEMORY:
        text, fix = f"{folder} is in memory on {node} ({facts['kind']})", "Give a folder of a local disk."
    elif not facts["writable"]:
        text = f"{node} cannot write to {folder}: {facts['error']}"
        fix = "Give a folder that is on every node."
    elif needed is not None and facts["free_bytes"] < needed:
        has, takes = format_bytes(facts["free_bytes"]), format_bytes(needed)
        text = f"{node} has {has} free in {folder}, and its states take {takes}"
        fix = "Free some, ask for more nodes, or use parallel.offload=optimizer."
    else:
        return []
    return [Problem(verdict="fail", text=text, fix=fix)]
