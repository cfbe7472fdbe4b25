"""`megatune doctor`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from megatune.config import LoadedRun, load_run
from megatune.errors import UserError
from megatune.report.tables import render_table, show
from megatune.units import format_bytes

_LEAST_LIMIT_S = 5.0


def run_doctor(
    run_file: Path | None, overrides: Sequence[str], *, nodes: int | None, limit_s: float, as_json: bool
) -> int:
    """Check as this process's rank, or start them here. Returns the exit code: 1 when a rung fails, else 0."""
    if limit_s < _LEAST_LIMIT_S:
        raise UserError(f"--limit is {limit_s:g}; the checks need {_LEAST_LIMIT_S:g} seconds or more.")
    if nodes is not None and nodes < 1:
        raise UserError(f"--nodes is {nodes}; it must be 1 or more.")
    from megatune.doctor.watchdog import Watchdog

    watchdog = Watchdog(limit_s)
    loaded = load_run(run_file, overrides) if run_file else None
    from megatune.doctor.mpi_gather import find_rank

    rank, facts = find_rank(loaded.run.launch.launcher if loaded else "auto", within_s=limit_s / 2)
    if rank is None:
        code = _alone(loaded, run_file, overrides, nodes=nodes, limit_s=limit_s, as_json=as_json)
    else:
        from megatune.doctor.rank import Request, check_as_rank

        request = Request(run=loaded.run if loaded else None, limit_s=limit_s, nodes=nodes)

        def show_it(answer: dict[str, Any]) -> None:
            show_report(answer, as_json=as_json)

        code = check_as_rank(rank, facts, request, watchdog, show_it)
    watchdog.stop()
    return code


def _alone(
    loaded: LoadedRun | None,
    run_file: Path | None,
    overrides: Sequence[str],
    *,
    nodes: int | None,
    limit_s: float,
    as_json: bool,
) -> int:
    if nodes is not None and nodes > 1:
        again = " ".join(["megatune doctor", *([str(run_file)] if run_file else []), *overrides])
        raise UserError(
            f"--nodes {nodes}, but this process is alone on this machine. Start the doctor on all nodes, inside an "
            f"allocation: srun --nodes={nodes} --ntasks-per-node=RANKS {again} --nodes {nodes}"
        )
    from megatune.doctor.job import check_this_machine

    answer, code, failure = check_this_machine(loaded, run_file, overrides, limit_s=limit_s)
    if answer is not None:
        show_report(answer, as_json=as_json)
        return 0 if answer["passed"] else 1
    if failure:
        print(failure, file=sys.stderr)
    return code


def show_report(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print the report: one JSON object, or a table with the lines to paste below it."""
    rows = [
        {
            "rung": rung["name"],
            "verdict": rung["verdict"],
            "seconds": f"{rung['seconds']:.1f}",
            "found": rung["message"],
            "fix": rung["fix"] or "",
        }
        for rung in answer["rungs"]
    ]
    table = render_table(rows, title=f"{answer['world_size']} rank(s) on {', '.join(answer['nodes'])}")
    show(answer, table, Text(summary(answer)), as_json=as_json)


def summary(answer: dict[str, Any]) -> str:
    """The lines below the table: links, nodes to leave out, and the verdict."""
    lines = []
    for name, kind in (("inside a node", "intra_node"), ("between nodes", "inter_node")):
        link = (answer["links"] or {}).get(kind)
        if link:
            lines.append(
                f"links {name}: {link['latency_s'] * 1e6:.1f} us + bytes / {format_bytes(link['bytes_per_s'])}/s"
            )
    if answer["exclude"]:
        lines.append(f"leave these nodes out: {answer['exclude']}")
    failed = [rung["name"] for rung in answer["rungs"] if rung["verdict"] == "fail"]
    lines.append(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return "\n".join(lines)
