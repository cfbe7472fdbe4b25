"""What links between the machines of a job can do: one large all-reduce over all ranks that its cases train with.

`measure_links` starts `python -m megatune.bench.links ANSWER.json` as the ranks of a step of the job.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatune.bench.child import output_of
from megatune.bench.peaks import sent_bytes_per_s
from megatune.errors import LaunchError
from megatune.files import write_text_atomic
from megatune.launch.processes import module_command
from megatune.launch.ranks import discover_rank, export_rank
from megatune.launch.slurm.places import InAllocation

_TIMEOUT_S = 300.0


def measure_links(places: Iterable[InAllocation], folder: Path) -> list[dict[str, Any]]:
    """Bytes a second that a rank sends while all ranks of a place do; a place where it cannot be measured is left out.

    `folder`: for logs and answers, where all nodes see it.
    """
    measured = ((place, _rate(place, folder)) for place in places)
    return [
        {"nodes": place.request.nodes, "ranks": place.num_ranks, "link_bytes_per_s": rate}
        for place, rate in measured
        if rate is not None
    ]


def _rate(place: InAllocation, folder: Path) -> float | None:
    name = f"links-{place.request.nodes}"
    logs = folder / name
    logs.mkdir(parents=True, exist_ok=True)
    answer = logs / "answer.json"
    command = module_command("megatune.bench.links", str(answer), python=place.launcher(name, logs))
    try:
        output_of(command, name, _TIMEOUT_S, logs=logs)
    except LaunchError as error:
        print(
            f"megatune: links between {place.request.nodes} nodes were not measured: {error}", file=sys.stderr
        )
        return None
    finally:
        place.end(name)
    return float(json.loads(answer.read_text(encoding="utf-8")))


def main(answer: Path) -> None:
    """Be one rank: measure with the others; the first writes the median. Raises LaunchError without others."""
    rank = discover_rank()
    if rank is None:
        raise LaunchError("megatune.bench.links is for the ranks of srun or torchrun.")
    export_rank(rank)
    from megatune.engine.start import enter, leave
    from megatune.engine.world import make_world

    device = enter(rank, timeout_s=_TIMEOUT_S)
    rates = make_world(1, device, timeout_s=_TIMEOUT_S).gather_objects(sent_bytes_per_s(device))
    if rank.rank == 0:
        write_text_atomic(answer, json.dumps(statistics.median(rates)))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
