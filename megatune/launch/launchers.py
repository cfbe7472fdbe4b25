"""Whether what started this process is what the run file asks for, and how to start it if not."""

from collections.abc import Mapping

from megatune.errors import ConfigError
from megatune.launch.rank_info import RankInfo

_STARTS_HERE = ("auto", "local")


def refuse_other_launcher(
    asked: str, rank: RankInfo | None, *, run_file: str, num_nodes: int, in_allocation: bool
) -> None:
    """Raise ConfigError when `launch.launcher` names a launcher that has not started this process.

    `rank`: what this process was started as; None outside a launched job, where `ssh` is fine too: it
    starts its ranks itself. The message holds the command that starts the run as asked.
    """
    if rank is None:
        if asked in (*_STARTS_HERE, "ssh"):
            return
        found = "has not started this process"
    else:
        # Who set the variables of an `environment` rank is unknown: it may be the one that is asked for.
        if asked in ("auto", rank.launcher) or rank.launcher == "environment":
            return
        found = f"{rank.launcher} started this process, as rank {rank.rank} of {rank.world_size}"
    command = start_command(asked, run_file=run_file, num_nodes=num_nodes, in_allocation=in_allocation)
    raise ConfigError(
        [
            f"launch.launcher is {asked}, but {_named(found, asked)}. Start it with `{command}`, or use {_other(rank)}."
        ]
    )


def start_command(asked: str, *, run_file: str, num_nodes: int, in_allocation: bool) -> str:
    """The command line that starts a run with the launcher `asked`."""
    train = f"megatune train {run_file}"
    nodes = f"--nnodes {num_nodes} " if num_nodes > 1 else ""
    meet = "--rdzv_backend c10d --rdzv_endpoint HOST:PORT " if num_nodes > 1 else ""
    commands: Mapping[str, str] = {
        "local": train,
        "ssh": train,
        "slurm": f"srun --ntasks-per-node=N --kill-on-bad-exit=1 {train}"
        if in_allocation
        else f"megatune submit {run_file}",
        "mpi": f"mpirun -n N {train}",
        "torchrun": f"torchrun {nodes}--nproc_per_node N {meet}-m {train}",
    }
    return commands[asked]


def _named(found: str, asked: str) -> str:
    return f"{asked} {found}" if found.startswith("has") else found


def _other(rank: RankInfo | None) -> str:
    return "launch.launcher=local" if rank is None else "launch.launcher=auto"
