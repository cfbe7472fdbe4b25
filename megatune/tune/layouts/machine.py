"""Where trials run: on this machine, or as steps of srun on all nodes of an allocation."""

from pathlib import Path

from megatune.config import LoadedRun, Run
from megatune.launch.devices import count_gpus, ranks_here
from megatune.launch.measurements import measured_for
from megatune.launch.planned_run import machine_here
from megatune.launch.slurm.preview import machine_of
from megatune.launch.slurm.workers_job import request_of
from megatune.plan.question import Machine


def machine_of_trials(run: Run, gpu: str | None) -> Machine:
    """This machine, with as many ranks as `megatune train` would start on it. Raises PlanError for an unknown --gpu."""
    ranks = ranks_here(run.launch.nproc_per_node, run.parallel.tp_size, num_gpus=count_gpus())
    return machine_here(run, num_nodes=1, ranks_per_node=ranks, gpu=gpu)


def machine_in_job(loaded: LoadedRun, folder: Path, run_file: Path) -> Machine:
    """The nodes of the run's job. Raises ConfigError for a job that cannot be."""
    request = request_of(loaded, folder, run_file)
    gpus = request.gpus
    device = "cpu" if gpus is None else gpus.name
    return machine_of(request, measured_for(loaded.run, device=device))
