"""What a rank that somebody else started checks and readies for itself, before it joins the others.

Ranks of `megatune train` find it done (train/job.py); those of torchrun, srun and mpirun have nobody to do it for them.
"""

from megatune.config import LoadedRun, Run
from megatune.engine.accelerator import refuse_unusable_gpus
from megatune.errors import ConfigError
from megatune.launch.devices import count_gpus
from megatune.launch.local_disk import disk_problems
from megatune.launch.rank_info import RankInfo
from megatune.launch.ranks import use_extension_folder
from megatune.train.job import ready_ops


def prepare_launched_rank(loaded: LoadedRun, rank: RankInfo) -> None:
    """Check this rank's world against the run file and the machine, and have the ops of the run built.

    Every rank calls it: one of each environment builds while the others wait. Raises ConfigError, on
    every rank of the machine alike, and LaunchError when the ops cannot be built.
    """
    if rank.launcher == "local":
        return
    run = loaded.run
    num_gpus = count_gpus()
    refuse_unusable_gpus(num_gpus)
    problems = [*contradictions(run, rank, num_gpus), *disk_problems(run)]
    if problems:
        raise ConfigError(problems)
    folder = ready_ops(_with_most_ops(loaded, num_gpus))
    if folder is not None:
        use_extension_folder(folder)


def _with_most_ops(loaded: LoadedRun, num_gpus: int) -> Run:
    """The run, with offload where that may be chosen: nobody knows yet, and ranks must not compile later."""
    if not num_gpus or "parallel.offload" not in loaded.auto:
        return loaded.run
    parallel = loaded.run.parallel.model_copy(update={"offload": "optimizer"})
    return loaded.run.model_copy(update={"parallel": parallel})


def contradictions(run: Run, rank: RankInfo, num_gpus: int) -> list[str]:
    """What the run file or the machine says against the world that was started, in whole sentences."""
    found = []
    nodes = rank.nodes
    # Hosts of ssh may have different numbers of slots: their number is checked against the hostfile.
    is_counted = "nodes" in run.launch.model_fields_set and rank.launcher != "ssh"
    if is_counted and run.launch.nodes != nodes:
        found.append(
            f"launch.nodes is {run.launch.nodes}, but {rank.launcher} started {rank.world_size} ranks on {nodes} "
            f"node(s). Start as many nodes as the run file says, or take launch.nodes out of it."
        )
    asked = run.launch.nproc_per_node
    if asked not in ("auto", rank.local_world_size):
        found.append(
            f"launch.nproc_per_node is {asked}, but {rank.launcher} started {rank.local_world_size} rank(s) on this "
            f"node. Use launch.nproc_per_node={rank.local_world_size} or auto, or start {asked}."
        )
    if num_gpus and rank.local_world_size > num_gpus and not _may_see_only_its_own(rank, num_gpus):
        found.append(
            f"{rank.launcher} started {rank.local_world_size} ranks on this node, which has {num_gpus} GPU(s). "
            f"Start {num_gpus} or fewer ({_RANKS_PER_NODE.get(rank.launcher, 'ranks on each node:')} {num_gpus})."
        )
    return found


_RANKS_PER_NODE = {
    "torchrun": "torchrun --nproc_per_node",
    "slurm": "srun --ntasks-per-node",
    "mpi": "mpirun -n",
}


def _may_see_only_its_own(rank: RankInfo, num_gpus: int) -> bool:
    """Under srun and mpirun the GPUs of a node can be dealt out, one to each rank; torchrun cannot."""
    return num_gpus == 1 and rank.launcher in ("slurm", "mpi", "environment")
