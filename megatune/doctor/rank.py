"""What one rank of the doctor does, whoever started it."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatune.config import Run, load_run
from megatune.doctor.climb import FirstRank, follow
from megatune.doctor.exchange import open_exchange
from megatune.doctor.mpi_gather import HostFacts, find_rank
from megatune.doctor.needs import checkpoint_bytes, host_bytes, num_params_of
from megatune.doctor.pairs import points, split_kinds
from megatune.doctor.place import Place, Setting
from megatune.doctor.rungs import VERSIONS
from megatune.doctor.verdict import RungResult, passed, report
from megatune.doctor.watchdog import Watchdog
from megatune.errors import LaunchError, MegatuneError
from megatune.launch import ranks
from megatune.launch.measurements import keep_links
from megatune.launch.nodelist import expand_nodelist, expand_task_counts
from megatune.launch.ports import PortTakenError
from megatune.launch.ranks import RankInfo
from megatune.launch.run_folder import RunFolder
from megatune.launch.verdict import PORT_TAKEN
from megatune.plan.links import Links, fit_link, links_json
from megatune.report.tables import to_json

_MEET_S = 60.0
_REPORT_S = 2.0  # kept for the report when ranks are missing, after a start that was slow itself
_LEAST_S = 1.0

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    run: Run | None
    limit_s: float
    nodes: int | None


def check_as_rank(rank: RankInfo, facts: HostFacts, request: Request, watchdog: Watchdog, show: Show) -> int:
    """Climb the ladder with the other ranks; rank 0 gives the report to `show`. Returns the exit code.

    Raises LaunchError when rank 0 cannot be reached. Does not return when ranks are missing or a
    collective failed: a process group in that state cannot be left, so the process is ended.
    """
    begun = time.monotonic()
    meet_s = max(_LEAST_S, min(_MEET_S, request.limit_s / 2, watchdog.left_s() - _REPORT_S))
    try:
        exchange = open_exchange(rank, agent_prefix=ranks.agent_store_prefix(), within_s=meet_s)
    except PortTakenError:
        if rank.launcher != "slurm":
            raise
        print(f"megatune: port {rank.master_port} is taken by another program", file=sys.stderr)
        return PORT_TAKEN
    surroundings = ranks.surroundings()
    device = own_device(rank)
    place = Place(
        rank=rank,
        node=surroundings.get("SLURMD_NODENAME") or socket.gethostname(),
        setting=setting_of(request, device),
        surroundings=surroundings,
        exchange=exchange,
        device=device,
    )
    seconds = time.monotonic() - begun
    if rank.rank != 0:
        try:
            code = follow(place, watchdog, seconds=seconds)
        except LaunchError as error:
            print(f"megatune: {error}", file=sys.stderr)
            code = error.exit_code
        _leave(code, is_whole=code == 0)
        return code
    first = FirstRank(place, watchdog, promised=promised_nodes(surroundings), tell=_say)
    first.climb(max(_LEAST_S, meet_s - seconds), seconds, {VERSIONS: facts.by_rank} if facts.by_rank else {})
    links = measured_links(first)
    answer = report(first.results, first.group, links_json(links) if links else None)
    show(answer)
    _keep(answer, links, place)
    code = 0 if passed(first.results) else 1
    first.end(code)
    _leave(code, is_whole=first.is_whole)
    return code


def own_device(rank: RankInfo) -> torch.device:
    """The GPU of this rank, or the CPU."""
    if ranks.asks_for_cpu() or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def setting_of(request: Request, device: torch.device) -> Setting:
    """What the checks need to know of the run file."""
    run = request.run
    if run is None:
        return Setting(folder=Path(), asked_nodes=request.nodes)
    num_params = num_params_of(run)
    return Setting(
        folder=Path(run.train.output_dir),
        has_run=True,
        checkpoint_bytes=checkpoint_bytes(run, num_params),
        host_bytes=host_bytes(run, num_params, on_gpu=device.type == "cuda"),
        asked_nodes=request.nodes,
        offload_folder=run.parallel.disk_folder,
    )


def promised_nodes(surroundings: Mapping[str, str]) -> list[str] | None:
    """The node of every rank where Slurm fills one node after the other; None outside a step of srun."""
    nodes, tasks = surroundings.get("SLURM_STEP_NODELIST"), surroundings.get("SLURM_STEP_TASKS_PER_NODE")
    if nodes is None or tasks is None:
        return None
    counts = zip(expand_nodelist(nodes), expand_task_counts(tasks), strict=False)
    return [node for node, count in counts for _ in range(count)]


def measured_links(first: FirstRank) -> Links | None:
    """The line through the measurements of each kind of link; None when no pair was measured."""
    intra, inter = split_kinds(first.answers.get("pairs", {}), first.group)
    if not intra and not inter:
        return None
    backend = next(iter(first.answers["process_group"].values()))["backend"]
    return Links(
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        backend=backend,
        num_nodes=len(first.group.node_names()),
        intra_node=fit_link(points(intra)),
        inter_node=fit_link(points(inter)),
    )


def _keep(answer: dict[str, Any], links: Links | None, place: Place) -> None:
    """Write doctor.json into the run folder, and the links to where plans read them."""
    try:
        if place.setting.has_run:
            folder = RunFolder(place.setting.folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_text_atomic(folder.doctor.name, to_json(answer) + "\n")
        if links is not None:
            keep_links(links, place.surroundings, place.node)
    except OSError as error:
        print(f"megatune: the report was not kept: {error}", file=sys.stderr)


def _say(result: RungResult) -> None:
    words = f"megatune: {result.name}: {result.finding.verdict} ({result.seconds:.1f} s)"
    print(words, file=sys.stderr, flush=True)


def _leave(code: int, *, is_whole: bool) -> None:
    """Leave the process group; end the process at once when that would wait for ranks that do not come."""
    if not is_whole:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()


def main(arguments: Sequence[str]) -> int:
    """A rank that `doctor/job.py` started; its one argument is a file that says what to do."""
    asked = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    watchdog = Watchdog(asked["limit_s"])
    run = load_run(Path(asked["run_file"]), asked["overrides"]).run if asked["run_file"] else None
    request = Request(run=run, limit_s=asked["limit_s"], nodes=asked["nodes"])
    launcher = run.launch.launcher if run else "auto"
    rank, facts = find_rank(launcher, within_s=request.limit_s / 2)
    assert rank is not None, "the launcher has set the variables"

    def write(answer: dict[str, Any]) -> None:
        Path(asked["report"]).write_text(to_json(answer), encoding="utf-8")

    code = check_as_rank(rank, facts, request, watchdog, write)
    watchdog.stop()
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MegatuneError as error:
        print(f"megatune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
