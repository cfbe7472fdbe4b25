"""A port for MASTER_PORT that no other start on this machine takes at the same time."""

import contextlib
import errno
import random
import socket
from collections.abc import Collection, Iterator

from megatune.errors import LaunchError

LOOPBACK = "127.0.0.1"
# Below Linux's default range for outgoing connections (32768 and up), which would take it any moment.
PORTS = range(20000, 32000)
_TRIES_FROM_FIRST = 1000


class PortTakenError(LaunchError):
    """Rank 0 cannot listen on MASTER_PORT: another program does."""


@contextlib.contextmanager
def reserve_port(first_port: int | None = None, *, avoid: Collection[int] = ()) -> Iterator[int]:
    """A free TCP port, kept from every other megatune start on this machine while the block runs.

    Rank 0 must bind the port itself, so it cannot be held open here. An abstract socket named
    after it keeps other launchers away (the kernel drops it with its owner, and it lives in the
    same network namespace as the port); a foreign program can still take the port before rank 0
    does, which the caller sees as "address already in use" and answers with another port.

    `first_port`: try upwards from here instead of at random. Raises LaunchError when none is free.
    """
    candidates = _candidates(first_port)
    for port in candidates:
        claim = None if port in avoid else _claim(port)
        if claim is None:
            continue
        with claim:
            if _is_free(port):
                yield port
                return
    raise LaunchError(
        f"no free TCP port between {min(candidates)} and {max(candidates)} for the ranks to meet on. "
        "End programs that hold them (`ss -tlnp` lists them)."
    )


def _candidates(first_port: int | None) -> list[int]:
    if first_port is not None:
        return list(range(first_port, min(first_port + _TRIES_FROM_FIRST, 65536)))
    return random.sample(PORTS, len(PORTS))


def _claim(port: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0megatune-master-port-{port}")
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return claim


def _is_free(port: int) -> bool:
    # The store of torch listens on all addresses, of IPv6 too where the machine has it.
    return _can_bind(socket.AF_INET, "0.0.0.0", port) and (
        not socket.has_ipv6 or _can_bind(socket.AF_INET6, "::", port)
    )


def _can_bind(family: socket.AddressFamily, address: str, port: int) -> bool:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return True  # the kernel was built or started without this family
    with probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the store does: TIME_WAIT is no obstacle
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            if error.errno == errno.EADDRNOTAVAIL:  # IPv6 is compiled in but switched off
                return True
            raise
    return True
