"""Where trials run: on this machine, or as steps of srun on all nodes of an allocation."""

from pathlib import Path

from megatune.config import LoadedRun
from megatune.launch.devices import count_gpus, gpu_names, host_memory_bytes, ranks_here
from megatune.launch.measurements import measured_for
from megatune.launch.slurm.preview import machine_of
from megatune.launch.slurm.workers_job import request_of
from megatune.plan.hardware import Accelerator, accelerator_named, find_accelerator
from megatune.plan.question import Machine


def machine_here(loaded: LoadedRun, gpu: str | None) -> Machine:
    """This machine, with as many ranks as `megatune train` would start on it. Raises PlanError for an unknown --gpu."""
    run, gpus = loaded.run, count_gpus()
    accelerator = _accelerator(gpu, gpus)
    device = accelerator.name if accelerator else None if gpus else "cpu"
    return Machine(
        nodes=1,
        ranks_per_node=ranks_here(run.launch.nproc_per_node, run.parallel.tp_size, num_gpus=gpus),
        accelerator=accelerator,
        host_memory_bytes=host_memory_bytes(),
        measured=measured_for(run, device=device),
        on_cpu=not gpus,
        needs_limit=False,
    )


def machine_in_job(loaded: LoadedRun, folder: Path, run_file: Path) -> Machine:
    """The nodes of the run's job. Raises ConfigError for a job that cannot be."""
    request = request_of(loaded, folder, run_file)
    gpus = request.gpus
    device = "cpu" if gpus is None else gpus.name
    return machine_of(request, measured_for(loaded.run, device=device))


def _accelerator(asked: str | None, num_gpus: int) -> Accelerator | None:
    if asked is not None:
        return None if asked == "cpu" else accelerator_named(asked)
    names = gpu_names() if num_gpus else []
    return find_accelerator(names[0]) if names else None
