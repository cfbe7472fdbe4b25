"""The state of the GPUs as nvidia-smi tells it, before this job uses them."""

import csv
import io
import subprocess
from collections.abc import Sequence
from typing import Any

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, not_available
from megatune.launch.devices import count_gpus
from megatune.launch.ranks import visible_devices
from megatune.units import format_bytes

_TIMEOUT_S = 20.0
_MIB = 2**20
_USED_BY_OTHERS_BYTES = 1024 * _MIB  # the driver itself keeps some hundred MiB
_STATE = ("index", "uuid", "name", "memory.total", "memory.used")
_ERRORS = ("index", "ecc.errors.uncorrected.volatile.total")
_SLOWDOWNS = (
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)


def measure_gpus(place: Place) -> Json:
    """The GPUs of this node that the job may use, a mapping each. Asked once a node.

    Three questions: a driver that does not know one field refuses the whole question.
    """
    if not place.is_first_of_node:
        return {}
    usable = count_gpus()
    if usable == 0:
        return {"usable": 0, "gpus": []}
    gpus = _visible(_ask(_STATE), visible_devices())
    for answer in (_ask(_ERRORS), _ask_slowdowns()):
        more = {gpu["index"]: gpu for gpu in answer}
        gpus = [{**gpu, **more.get(gpu["index"], {})} for gpu in gpus]
    return {"usable": usable, "gpus": gpus}


def _visible(
    gpus: Sequence[dict[str, str | None]], visible: Sequence[str] | None
) -> list[dict[str, str | None]]:
    """Those of CUDA_VISIBLE_DEVICES: nvidia-smi, which does not read it, lists the GPUs of other people's jobs, too."""
    if visible is None:
        return list(gpus)
    return [
        gpu
        for gpu in gpus
        if gpu["index"] in visible
        or any(entry.startswith("GPU-") and (gpu["uuid"] or "").startswith(entry) for entry in visible)
    ]


def _ask_slowdowns() -> list[dict[str, str | None]]:
    """Newer drivers call them clocks_event_reasons, and need not answer to the older names, which are kept here."""
    newer = [name.replace("throttle", "event") for name in _SLOWDOWNS]
    rows = _ask(("index", *_SLOWDOWNS)) or _ask(("index", *newer))
    return [dict(zip(("index", *_SLOWDOWNS), row.values(), strict=True)) for row in rows]


def _ask(fields: Sequence[str]) -> list[dict[str, str | None]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []  # not there, or a driver that hangs: the judge says that nothing is known
    return parse_query(done.stdout, fields) if done.returncode == 0 else []


def parse_query(text: str, fields: Sequence[str]) -> list[dict[str, str | None]]:
    """The rows of `nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`; None for `[N/A]` and the like.

    >>> parse_query("0, 1024, [N/A]", ["index", "memory.used", "ecc"])
    [{'index': '0', 'memory.used': '1024', 'ecc': None}]
    """
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if len(row) == len(fields)]
    return [dict(zip(fields, map(_known, row), strict=True)) for row in rows]


def _known(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell.startswith("[") or cell.lower() in ("n/a", "not supported", "") else cell


def judge_gpus(answers: Answers, group: Group) -> Finding:
    """As many GPUs on every node, none full, broken or slowed down."""
    by_node = {node: answers[rank] for node, rank in group.first_ranks().items() if answers.get(rank)}
    counts = {node: int(facts["usable"]) for node, facts in by_node.items()}
    if not any(counts.values()):
        return not_available("no GPU on any node")
    problems = _count_problems(counts)
    unknown = [node for node, facts in by_node.items() if counts[node] and not facts["gpus"]]
    if unknown:
        problems.append(
            Problem(
                verdict="warn",
                text=f"nvidia-smi tells nothing about the GPUs of {', '.join(unknown)}",
                fix="Run `nvidia-smi` there; a driver that hangs needs a restart of the node.",
            )
        )
    for node, facts in by_node.items():
        for gpu in facts["gpus"]:
            problems += _gpu_problems(gpu, node)
    num_gpus = sum(counts.values())
    names = sorted({gpu["name"] or "n/a" for facts in by_node.values() for gpu in facts["gpus"]})
    return conclude(
        problems,
        good=f"{num_gpus} GPU(s) ({', '.join(names)}), none in use, no errors, none slowed down",
        measured={"num_gpus": num_gpus, "names": names},
        by_node=by_node,
    )


def _count_problems(counts: dict[str, int]) -> list[Problem]:
    most = max(counts.values())
    fewer = {node: count for node, count in counts.items() if count < most}
    if not fewer:
        return []
    found = ", ".join(f"{count} on {node}" for node, count in fewer.items())
    return [
        Problem(
            verdict="fail",
            text=f"GPUs are missing: {most} on most nodes, {found}",
            fix="Leave these nodes out, and tell the administrators: a GPU may have fallen off the bus.",
            nodes=tuple(fewer),
        )
    ]


def _gpu_problems(gpu: dict[str, Any], node: str) -> list[Problem]:
    place = f"GPU {gpu['index']} of {node}"
    found = []
    used_bytes = _whole(gpu.get("memory.used"))
    if used_bytes is not None and used_bytes * _MIB > _USED_BY_OTHERS_BYTES:
        found.append(
            Problem(
                verdict="fail",
                text=f"{place} has {format_bytes(used_bytes * _MIB)} in use by others",
                fix="`nvidia-smi` on that node shows by whom; end left-over processes of your own.",
                nodes=(node,),
            )
        )
    errors = _whole(gpu.get("ecc.errors.uncorrected.volatile.total"))
    if errors:
        found.append(
            Problem(
                verdict="fail",
                text=f"{place} counts {errors} uncorrected memory error(s) since its driver was loaded",
                fix="Leave the node out, and have the GPU reset or replaced.",
                nodes=(node,),
            )
        )
    active = [name.rpartition(".")[2] for name in _SLOWDOWNS if (gpu.get(name) or "").lower() == "active"]
    if active:
        found.append(
            Problem(
                verdict="warn",
                text=f"{place} is slowed down: {', '.join(active)}",
                fix="Its cooling or power supply is at its limit; the matmul rung shows what that costs.",
            )
        )
    return found


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
