"""Names, interfaces and the way to rank 0's host, as each rank sees them."""

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, median
from megatune.launch.addresses import is_loopback

_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SLOW_LOOKUP_S = 1.0
_SLOW_CONNECT_S = 1.0


def measure_names(place: Place) -> Json:
    """Addresses of the own host and of rank 0's, the interface towards it, and the interfaces asked for."""
    hostname = socket.gethostname()
    begun = time.monotonic()
    own, own_error = resolve(hostname)
    master, master_error = resolve(place.rank.master_addr)
    return {
        "hostname": hostname,
        "addresses": own,
        "error": own_error,
        "lookup_s": round(time.monotonic() - begun, 4),
        "master": place.rank.master_addr,
        "master_addresses": master,
        "master_error": master_error,
        "interface": route_interface(master[0]) if master else None,
        "interfaces": interfaces(),
        "asked": {
            name: place.surroundings[name] for name in _INTERFACE_VARIABLES if name in place.surroundings
        },
    }


def judge_names(answers: Answers, group: Group) -> Finding:
    """Own names must resolve, and not to the loopback when there are several nodes; so must rank 0's."""
    problems: list[Problem] = []
    by_node = group.of_first_ranks(answers)
    for node, facts in by_node.items():
        problems += _name_problems(facts, node, several=len(group.node_names()) > 1)
    paths = sorted({str(facts["interface"] or "n/a") for facts in answers.values()})
    return conclude(
        problems,
        good=f"every name resolves; the way to rank 0 is over {', '.join(paths)}",
        measured={"interfaces_to_rank_0": paths},
        by_node=by_node,
    )


def _name_problems(facts: Json, node: str, *, several: bool) -> list[Problem]:
    found: list[Problem] = []
    if facts["error"]:
        found.append(
            Problem(
                verdict="fail" if several else "warn",
                text=f"{node} does not know its own name {facts['hostname']}: {facts['error']}",
                fix="Enter the host in DNS or /etc/hosts.",
                nodes=(node,) if several else (),
            )
        )
    if facts["master_error"]:
        found.append(
            Problem(
                verdict="fail",
                text=f"{node} cannot resolve rank 0's host {facts['master']}: {facts['master_error']}",
                fix="Enter the host in DNS or /etc/hosts of every node.",
                nodes=(node,),
            )
        )
    if several and all_lead_back(facts["addresses"]):
        found.append(
            Problem(
                verdict="warn",
                text=f"{node} resolves its own name {facts['hostname']} to the loopback "
                f"({', '.join(facts['addresses'])}): gloo may then offer an address that no other node reaches",
                fix="Set slurm network_interface of the site profile (GLOO_SOCKET_IFNAME), or correct /etc/hosts.",
            )
        )
    if facts["lookup_s"] > _SLOW_LOOKUP_S:
        found.append(
            Problem(
                verdict="warn",
                text=f"looking up two names took {facts['lookup_s']:.1f} s on {node}",
                fix="Look at the name servers in /etc/resolv.conf; one of them may not answer.",
            )
        )
    return found + _interface_problems(facts, node)


def _interface_problems(facts: Json, node: str) -> list[Problem]:
    return [
        Problem(
            verdict="fail",
            text=f"{variable}={asked} names no interface of {node}, which has {', '.join(facts['interfaces'])}",
            fix=f"Correct {variable} (network_interface of the site profile), or leave it out.",
        )
        for variable, asked in facts["asked"].items()
        if not interface_exists(asked, facts["interfaces"], by_prefix=variable.startswith("NCCL"))
    ]


def measure_ports(place: Place) -> Json:
    """Seconds to open a connection to rank 0's port from this node."""
    begun = time.monotonic()
    address = (place.rank.master_addr, place.rank.master_port)
    socket.create_connection(address, timeout=place.left_s()).close()
    return {"connect_s": round(time.monotonic() - begun, 5)}


def judge_ports(answers: Answers, group: Group) -> Finding:
    """A connection that takes a second has lost a packet, or waits for a name."""
    slow = {
        rank: facts["connect_s"] for rank, facts in answers.items() if facts["connect_s"] > _SLOW_CONNECT_S
    }
    problems = [
        Problem(
            verdict="warn",
            text=f"{group.name(rank)} needed {seconds:.1f} s to connect to rank 0",
            fix="Look for packet loss between the two hosts (`ip -s link`, `ping`).",
        )
        for rank, seconds in slow.items()
    ]
    middle = median([facts["connect_s"] for facts in answers.values()])
    return conclude(
        problems,
        good=f"rank 0's port answers in {0.0 if middle is None else middle * 1e3:.1f} ms",
        measured={"median_connect_s": middle},
        by_rank={rank: facts["connect_s"] for rank, facts in answers.items()},
    )


def resolve(name: str) -> tuple[list[str], str | None]:
    """The addresses of a host name, or the resolver's reason why there are none."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return [], str(error)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers)), None


def all_lead_back(addresses: Sequence[str]) -> bool:
    """Whether there are addresses and all of them lead back to the host itself."""
    return bool(addresses) and all(map(is_loopback, addresses))


def interfaces(folder: Path = Path("/sys/class/net")) -> list[str]:
    """Names of the network interfaces of this host."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def interface_exists(asked: str, present: Sequence[str], *, by_prefix: bool) -> bool:
    """Whether one of the interfaces asked for is there.

    NCCL takes prefixes, `=name` for an exact one, and `^name` for all but those
    (docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html); gloo takes names.
    """
    if by_prefix and asked.startswith("^"):
        return True
    exact = not by_prefix or asked.startswith("=")
    names = [name.strip() for name in asked.lstrip("=").split(",")]
    return any(
        name == there if exact else there.startswith(name) for name in names if name for there in present
    )


def route_interface(address: str, routes: Path = Path("/proc/net/route")) -> str | None:
    """The interface that a packet to this IPv4 address leaves by; None for IPv6, or when nothing tells."""
    with contextlib.suppress(ValueError):
        if is_loopback(address):
            return "lo"
    try:
        target = struct.unpack("<I", socket.inet_aton(address))[0]
        lines = routes.read_text().splitlines()[1:]
    except OSError:  # not IPv4, or a kernel without this table
        return None
    if address in _own_addresses(address):
        return "lo"
    best: tuple[int, str] | None = None
    for fields in (line.split() for line in lines):
        destination, mask = int(fields[1], 16), int(fields[7], 16)
        length = mask.bit_count()
        if target & mask == destination and (best is None or length > best[0]):
            best = (length, fields[0])
    return best[1] if best else None


def _own_addresses(address: str) -> list[str]:
    """`address` itself when it is one of this host's: the kernel then picks it as the source too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: only the route is chosen
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
