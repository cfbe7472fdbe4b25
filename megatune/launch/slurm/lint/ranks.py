"""Rules on how the ranks are started and find each other."""

import re
from collections.abc import Iterator

from megatune.launch.slurm.lint.finding import Hit, LintFacts, Rule
from megatune.launch.slurm.lint.parse import BatchScript, without_strings
from megatune.launch.slurm.lint.resources import starts_ranks_itself

_FIXED_PORT = re.compile(
    r"(?:MASTER_PORT=|--(?:main_process|master|rdzv)[-_]port[= ]|--rdzv[-_]endpoint[= ]\S*?:)[\"']?(\d{2,5})\b"
)
_LOCAL = re.compile(
    r"MASTER_ADDR=[\"']?(localhost|127\.0\.0\.1)|--master[-_]addr[= ](localhost|127\.0\.0\.1)"
)
_OWN_ADDRESS = re.compile(r"hostname\s+(?:-I|-i|--ip-address|--all-ip-addresses)")


def _fixed_port(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for command in script.commands:
        found = _FIXED_PORT.search(command.text)
        if found and found[1] != "0":
            yield Hit(
                line=command.line,
                message=f"Port {found[1]} is fixed: a second job on the same node ends with `address already in use`.",
            )


def _local_master(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    if not script.nodes or script.nodes == 1:
        return
    for command in script.commands:
        if _LOCAL.search(command.text):
            yield Hit(
                line=command.line,
                message="The ranks of other nodes look for the first rank on their own node.",
            )


def _address_of_host(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for command in script.commands:
        if _OWN_ADDRESS.search(without_strings(command.text)):
            yield Hit(
                line=command.line,
                message="The first address that `hostname` gives may be the loopback, or one no other node reaches.",
            )


def _loopback_interface(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        command = script.sets(name)
        if command and re.search(rf"{name}=[\"']?lo\b", command.text) and script.nodes != 1:
            yield Hit(line=command.line, message=f"{name}=lo keeps the ranks from reaching other nodes.")


def _by_ssh(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for command in script.commands:
        text = without_strings(command.text)
        if re.search(r"(^|[\s;&|])(pdsh|pssh|clush)\s", text):
            program = "pdsh and its kind"
        elif re.search(r"(^|[\s;&|/])deepspeed\s", text) and "--launcher" not in text:
            program = "the deepspeed launcher (by pdsh)"
        elif "--hostfile" in text:
            program = "a hostfile launcher"
        elif re.search(r"(^|[\s;&|])ssh\s+\S", text):
            program = "ssh"
        else:
            continue
        yield Hit(
            line=command.line,
            message=f"{program} starts ranks outside of the job step: many clusters forbid it, Slurm does not end them "
            "with the job, and their memory and GPUs are not the job's.",
        )


def _closed_environment(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("export")
    if option and option.value.upper() == "NONE" and script.sets("SLURM_EXPORT_ENV") is None:
        yield Hit(
            line=option.line,
            message="srun takes --export=NONE over: the ranks start without the modules and variables of the script.",
        )


def _survivors(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    tasks = (script.tasks_per_node or 1) * (script.nodes or 2)
    ended_by_slurm = any("SLURM_KILL_BAD_EXIT" in line for line in script.lines)
    if tasks == 1 or starts_ranks_itself(script) or ended_by_slurm:
        return
    for command in script.calls("srun"):
        if not re.search(r"\s(-K1?|--kill-on-bad-exit(=1)?)(\s|$)", command.text):
            yield Hit(
                line=command.line,
                message="When one rank fails, srun leaves the others waiting in a collective until the time limit.",
            )


RANK_RULES = (
    Rule(
        name="fixed-port",
        severity="warning",
        check=_fixed_port,
        fix="Derive it from the job: MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)).",
    ),
    Rule(
        name="local-master",
        severity="error",
        check=_local_master,
        fix='MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    ),
    Rule(
        name="address-of-host",
        severity="warning",
        check=_address_of_host,
        fix='Use the node\'s name: $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1).',
    ),
    Rule(
        name="loopback-interface",
        severity="error",
        check=_loopback_interface,
        fix="Name the interface of the nodes' network.",
    ),
    Rule(
        name="outside-slurm", severity="warning", check=_by_ssh, fix="Start them with srun, one task a GPU."
    ),
    Rule(
        name="closed-environment",
        severity="warning",
        check=_closed_environment,
        fix="export SLURM_EXPORT_ENV=ALL before srun.",
    ),
    Rule(name="survivors", severity="warning", check=_survivors, fix="Add srun's --kill-on-bad-exit=1."),
)
