"""Numeric addresses of hosts."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether a numeric address leads back to the host that uses it.

    >>> is_loopback("127.0.1.1"), is_loopback("fe80::1%eth0")
    (True, False)
    """
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
