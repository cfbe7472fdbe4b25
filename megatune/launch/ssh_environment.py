"""What of the environment goes along to the hosts that ranks are started on over ssh.

A shell that ssh starts there has read none of the user's settings, and sshd takes over none of ours.
Each function gets the environment as an argument: it is read in `launch/ranks.py`.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from megatune.errors import ConfigError
from megatune.launch.addresses import is_loopback

FORWARDED_PREFIXES = ("GLOO_", "HF_", "MEGATUNE_CACHE", "NCCL_", "OMP_", "TOKENIZERS_", "TORCH_", "UCX_")
"""Variables that ranks on other hosts get as they are here. Not CUDA_VISIBLE_DEVICES and not
DS_ACCELERATOR: which devices there are, each host knows for itself."""
BEFORE_PYTHON = ("LD_LIBRARY_PATH", "PYTHONPATH")
"""What the interpreter itself needs to start; anybody on the host can see these in a list of processes."""


def forwarded_environment(environ: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The variables for ranks on other hosts: those of FORWARDED_PREFIXES, and `names`.

    names: launch.forward_env. Raises ConfigError for those that are not set.
    """
    missing = [name for name in names if name not in environ]
    if missing:
        raise ConfigError(
            [
                f"launch.forward_env names {', '.join(missing)}, not set in the environment of this command. "
                "Export it, or take it out of the list."
            ]
        )
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(FORWARDED_PREFIXES) or name in (*BEFORE_PYTHON, *names)
    }


def before_python(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that must be set before the interpreter starts on another host."""
    return {name: environ[name] for name in BEFORE_PYTHON if environ.get(name)}


def reached_address(environ: Mapping[str, str]) -> str | None:
    """The address of this host that the ssh connection came in at, or None outside one.

    sshd sets SSH_CONNECTION to "client's address, client's port, our address, our port".
    """
    words = environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else None


def is_reachable_from(address: str | None, others: Sequence[str | None]) -> bool:
    """Whether hosts that were reached at `others` can mean `address` by it, too.

    A loopback address is everybody's own: it serves when all of them are on this machine.
    """
    if address is None:
        return False
    if ipaddress.ip_address(address.partition("%")[0]).is_link_local:
        return False
    return not is_loopback(address) or all(other is not None and is_loopback(other) for other in others)
