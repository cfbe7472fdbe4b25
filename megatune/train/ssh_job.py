"""`megatune train` with launcher ssh: check everything, prepare the data, start the ranks of all hosts."""

import sys
from collections.abc import Sequence
from pathlib import Path

from megatune.config import LoadedRun, Run
from megatune.engine.world import check_degrees
from megatune.errors import ConfigError
from megatune.launch.hostfile import Host, read_hostfile
from megatune.launch.processes import module_command
from megatune.launch.ranks import child_environment
from megatune.launch.run_folder import RunFolder
from megatune.launch.ssh import SshJob, run_ranks_over_ssh
from megatune.launch.ssh_environment import forwarded_environment
from megatune.train.job import prepare_for


def ssh_job(loaded: LoadedRun, arguments: Sequence[str]) -> int:
    """Start the ranks on the hosts of launch.hostfile and wait for them. Returns the exit code.

    `arguments`: the run file and overrides, given to each rank again, in this folder on every host.
    The data is prepared here; the ops of the run are compiled by the ranks, for each host's processor.
    """
    run = loaded.run
    assert run.launch.hostfile is not None, "a rule of the configuration"
    hosts = read_hostfile(run.launch.hostfile)
    problems = contradictions(run, hosts)
    if problems:
        raise ConfigError(problems)
    environment = forwarded_environment(child_environment({}), run.launch.forward_env)
    num_ranks = sum(host.slots for host in hosts)
    check_degrees(num_ranks, run.parallel.tp_size)
    folder = RunFolder(run.train.output_dir)
    widest = max(host.slots for host in hosts)
    prepare_for(loaded, folder, num_nodes=len(hosts), ranks_per_node=widest, num_ranks=num_ranks)
    result = run_ranks_over_ssh(
        SshJob(
            command=module_command("megatune", "train", *arguments),
            hosts=hosts,
            python=sys.executable,
            folder=Path.cwd(),
            log_dir=folder.logs.absolute(),
            environment=environment,
        )
    )
    if result.failure_text:
        print(result.failure_text, file=sys.stderr)
    return result.exit_code


def contradictions(run: Run, hosts: Sequence[Host]) -> list[str]:
    """What the run file says against its hostfile, in whole sentences."""
    found = []
    launch = run.launch
    if "nodes" in launch.model_fields_set and launch.nodes != len(hosts):
        found.append(
            f"launch.nodes is {launch.nodes}, but {launch.hostfile} names {len(hosts)} hosts. Take launch.nodes "
            "out of the run file, or change the hostfile."
        )
    others = [host for host in hosts if launch.nproc_per_node not in ("auto", host.slots)]
    if others:
        named = ", ".join(f"{host.slots} on {host.name}" for host in others)
        found.append(
            f"launch.nproc_per_node is {launch.nproc_per_node}, but the slots of {launch.hostfile} are {named}. "
            "Use launch.nproc_per_node=auto, or change the hostfile."
        )
    return found
