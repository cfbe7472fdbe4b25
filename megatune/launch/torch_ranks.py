"""Which rank a process is, from the variables that torchrun, DeepSpeed's launchers and megatune set."""

from collections.abc import Mapping, Sequence

from megatune.errors import LaunchError
from megatune.launch.rank_info import RankInfo
from megatune.launch.variables import needed_number

RANK_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
# DeepSpeed quietly trains each process alone (world size 1) when LOCAL_RANK is missing: it then
# asks MPI and overwrites the other variables. So all of them must be there, or none.
_REQUIRED = (*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT")
_LOCAL_WORLD_NAMES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun's name, DeepSpeed's name


def read_rank(environ: Mapping[str, str], *, launcher: str) -> RankInfo:
    """The rank of this process. Raises LaunchError, naming every missing or impossible variable."""
    refuse_half_set(environ)
    problems: list[str] = []
    local_world_name = next(name for name in _LOCAL_WORLD_NAMES if environ.get(name))
    rank = needed_number(environ, "RANK", problems)
    local_rank = needed_number(environ, "LOCAL_RANK", problems)
    world_size = needed_number(environ, "WORLD_SIZE", problems)
    local_world_size = needed_number(environ, local_world_name, problems)
    master_port = needed_number(environ, "MASTER_PORT", problems)
    if not problems:
        if rank >= world_size:
            problems.append(f"RANK={rank} must be below WORLD_SIZE={world_size}")
        if local_rank >= local_world_size:
            problems.append(f"LOCAL_RANK={local_rank} must be below {local_world_name}={local_world_size}")
        if local_world_size > world_size:
            problems.append(f"{local_world_name}={local_world_size} must not exceed WORLD_SIZE={world_size}")
        if not 0 < master_port < 65536:
            problems.append(f"MASTER_PORT={master_port} must be from 1 to 65535")
    if problems:
        raise LaunchError(f"the rank environment is impossible: {'; '.join(problems)}. Check the launcher.")
    return RankInfo(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        master_addr=environ["MASTER_ADDR"],
        master_port=master_port,
        launcher=launcher,
    )


def refuse_half_set(environ: Mapping[str, str]) -> None:
    """Raise LaunchError when some of the variables of a rank are set, and not all."""
    present = [name for name in _REQUIRED if environ.get(name)]
    missing = [name for name in _REQUIRED if name not in present]
    if not any(environ.get(name) for name in _LOCAL_WORLD_NAMES):
        missing.append(_LOCAL_WORLD_NAMES[0])
    if present and missing:
        raise _half_set(present, missing)


def _half_set(present: Sequence[str], missing: Sequence[str]) -> LaunchError:
    return LaunchError(
        f"the rank environment is set only in part: {', '.join(present)} set, {', '.join(missing)} "
        "missing. A job that goes on so trains every process alone. Start with torchrun, srun, mpirun or plain "
        f"`megatune train`, which set all of them; or export {', '.join(missing)}; or, for a run on this "
        f"machine alone, unset {' '.join(present)}."
    )
