"""Which of the doctor's measurements a plan uses: the run's own, else those of the partition it goes to."""

import json
import socket
from pathlib import Path

from megatune.config import Run
from megatune.launch.ranks import cache_folder, surroundings
from megatune.launch.run_folder import RunFolder
from megatune.plan.links import Links, links_of, place_key, read_links

_GPU_BACKEND = "nccl"
"""Links measured with gloo are the hosts', not the GPUs'."""


def links_for(run: Run) -> Links | None:
    """Measured links between the GPUs that `run` will get; None when nobody measured them."""
    around = surroundings()
    found = _of_report(RunFolder(run.train.output_dir).doctor) or read_links(
        cache_folder() / "links.json",
        place_key(
            cluster=around.get("SLURM_CLUSTER_NAME"),
            partition=run.slurm.partition if run.slurm else None,
            host=around.get("SLURMD_NODENAME") or socket.gethostname(),
        ),
    )
    return found if found is not None and found.backend == _GPU_BACKEND else None


def _of_report(path: Path) -> Links | None:
    if not path.is_file():
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get("links")
    except ValueError:
        return None  # cut short while it was written: the plan uses the makers' figures
    return links_of(entry) if isinstance(entry, dict) else None
