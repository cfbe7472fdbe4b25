"""The options of sbatch and srun: which there are, and which of them megatune sets itself.

Names are those of the manual pages of Slurm 22.05 to 25.05.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from megatune.launch.slurm import text


def _names(lines: str) -> frozenset[str]:
    return frozenset(lines.split())


SBATCH_FLAGS = _names(
    """
    contiguous exclusive get-user-env help hold ignore-pbs kill-on-invalid-dep no-kill no-requeue overcommit
    oversubscribe parsable quiet reboot requeue spread-job test-only usage use-min-nodes verbose version
    wait stepmgr
    """
)
"""Options that stand without a value (some of them may have one)."""
SBATCH_OPTIONS = SBATCH_FLAGS | _names(
    """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint
    container container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline
    delay-boot dependency error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus
    gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint input job-name licenses mail-type
    mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice nodefile nodelist nodes
    ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-kill-step open-mode output
    partition power prefer priority profile propagate qos reservation resv-ports segment signal
    sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid
    wait-all-nodes wckey wrap
    """
)
SHORT_OPTIONS: Mapping[str, str] = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "O": "overcommit", "o": "output", "p": "partition", "q": "qos", "Q": "quiet", "s": "oversubscribe",
    "S": "core-spec", "t": "time", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip

_SECTION_KEYS: Mapping[str, str] = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "reservation": "reservation", "nodes": "nodes", "gpus-per-node": "gpus_per_node", "gres": "gpus_per_node",
    "gpus": "gpus_per_node", "gpus-per-task": "gpus_per_node", "cpus-per-task": "cpus_per_task", "mem": "mem",
    "time": "time", "signal": "signal_delay_s", "requeue": "requeue", "no-requeue": "requeue",
    "exclude": "exclude", "nodelist": "nodelist", "job-name": "job_name",
}  # fmt: skip
_FIXED = _names(
    """
    array chdir dependency error export export-file exclusive input no-kill ntasks ntasks-per-node open-mode
    output parsable uid gid wait wrap help usage version test-only verbose quiet ignore-pbs
    """
)
_SRUN_FIXED = _names(
    """
    nodes ntasks ntasks-per-node cpus-per-task output error input open-mode kill-on-bad-exit wait jobid
    chdir container-image container-mounts container-workdir multi-prog export overlap nodelist pty
    het-group unbuffered label
    """
)


def nearest_option(name: str) -> str | None:
    """The long option of sbatch that `name` may be a slip of."""
    near = get_close_matches(name, sorted(SBATCH_OPTIONS), n=1, cutoff=0.7)
    return near[0] if near else None


def check_additional(given: Mapping[str, str | int | bool]) -> list[str]:
    """What is wrong with further options of sbatch, each as a clause."""
    problems = []
    for name, value in given.items():
        problem = _name_problem(name) or _value_problem(value)
        if problem:
            problems.append(f"{name} {problem}")
    return problems


def _name_problem(name: str) -> str | None:
    if name not in SBATCH_OPTIONS:
        near = nearest_option(name.lstrip("-").replace("_", "-"))
        return "is none of sbatch's long names" + (f" (did you mean {near}?)" if near else "")
    if name in _SECTION_KEYS:
        return f"is set by slurm.{_SECTION_KEYS[name]}"
    return "is set by megatune itself" if name in _FIXED else None


def _value_problem(value: str | int | bool) -> str | None:
    if isinstance(value, str):
        try:
            text.option_value(value)
        except ValueError as error:
            return f"has the value {value!r}, which must be {error}"
    return None


def check_srun_arguments(given: Sequence[str]) -> list[str]:
    """What is wrong with further options of srun, each as a clause."""
    problems = []
    for argument in given:
        name = argument.partition("=")[0].removeprefix("--")
        try:
            text.srun_option(argument)
        except ValueError as error:
            problems.append(f"{argument!r} must be {error}")
            continue
        if name in _SRUN_FIXED:
            problems.append(f"--{name} is set by megatune itself")
    return problems
