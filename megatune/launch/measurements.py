"""What was measured where a run goes: by the doctor, and by runs (`megatune plan --calibrate`).

The run's own doctor.json comes first, then what is kept for its place (cluster and partition, or this host)
in the cache folder: links.json and calibration.json.
"""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatune.config import Run
from megatune.launch.ranks import cache_folder, surroundings
from megatune.launch.run_folder import RunFolder
from megatune.plan.calibration import Calibration, read_calibration
from megatune.plan.links import Links, links_of, place_key, read_links, write_links
from megatune.plan.rates import Measured

_BACKENDS = {True: "nccl", False: "gloo"}
"""Links measured with gloo are the hosts', not the GPUs'."""


def measured_for(run: Run, *, device: str | None) -> Measured:
    """All that is known of the machines that `run` will get.

    device: a name of the hardware table, or cpu; None, a GPU that is not in it, has no calibration.
    """
    on_gpus = device != "cpu"
    return Measured(
        links=links_for(run, on_gpus=on_gpus),
        cpu_flops_per_s=None if on_gpus else cpu_flops_for(run),
        calibration=calibration_for(run, device) if device else None,
    )


def links_for(run: Run, *, on_gpus: bool) -> Links | None:
    """Measured links between the devices that `run` will get; None when nobody measured them."""
    found = links_of(_of_doctor(run).get("links")) or read_links(_file("links"), place_of(run))
    return found if found is not None and found.backend == _BACKENDS[on_gpus] else None


def cpu_flops_for(run: Run) -> float | None:
    """Operations a second in fp32 matrix products of one node's ranks together, of the run's doctor; None without."""
    answer = _of_doctor(run)
    for rung in answer.get("rungs", ()):
        if rung["name"] == "matmul" and list(rung["measured"].get("median_flops_per_s", ())) == ["cpu"]:
            return float(sum(rung["by_rank"].values()) / len(answer["nodes"]))
    return None


def calibration_for(run: Run, device: str) -> Calibration | None:
    """The constants that runs on such devices gave, in the run's precision."""
    return read_calibration(calibration_file(), place_of(run), device=device, precision=run.precision)


def calibration_file() -> Path:
    """Where the constants of all places are kept."""
    return _file("calibration")


def keep_links(links: Links, around: Mapping[str, str], host: str) -> None:
    """Keep what the doctor measured on `host`, in the job of `around`, for the plans of that place. Raises OSError."""
    write_links(_file("links"), _place(around, around.get("SLURM_JOB_PARTITION"), host), links)


def place_of(run: Run) -> str:
    """The name of the place that `run` goes to."""
    around = surroundings()
    host = around.get("SLURMD_NODENAME") or socket.gethostname()
    return _place(around, run.slurm.partition if run.slurm else None, host)


def _place(around: Mapping[str, str], partition: str | None, host: str) -> str:
    return place_key(cluster=around.get("SLURM_CLUSTER_NAME"), partition=partition, host=host)


def _file(name: str) -> Path:
    return cache_folder() / f"{name}.json"


def _of_doctor(run: Run) -> dict[str, Any]:
    path = RunFolder(run.train.output_dir).doctor
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # cut short while it was written: the plan uses the makers' figures
    return found if isinstance(found, dict) else {}
