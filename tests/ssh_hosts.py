"""Hosts to log in to over ssh: a real sshd on loopback addresses of this machine, with its own keys."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SSHD = "/usr/sbin/sshd"
ADDRESSES = {"node-a": "127.0.0.1", "node-b": "127.0.0.2"}
"""Two names that lead here."""
DEAD_HOST = "node-dead"
"""A name where nothing listens."""


@dataclass(frozen=True)
class SshHosts:
    """A running sshd. `environment`: what a process needs so that its `ssh` knows these hosts."""

    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def connections(self) -> list[int]:
        """The processes of sshd that serve one connection each."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@contextmanager
def started_sshd(folder: Path) -> Iterator[SshHosts]:
    """An sshd with its keys and settings in `folder`; the test is skipped where there is none."""
    ssh = shutil.which("ssh")
    if not Path(_SSHD).exists() or ssh is None or shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed (Debian: openssh-server)")
    folder.mkdir()
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(_server_settings(folder, port))
    (folder / "ssh_config").write_text(_client_settings(folder, port))
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {ssh} -F {folder / "ssh_config"} "$@"\n')
    wrapper.chmod(0o755)
    log = folder / "sshd.log"
    process = subprocess.Popen([_SSHD, "-D", "-f", folder / "sshd_config", "-E", log])
    try:
        _wait_until_open(port, process, log)
        yield SshHosts({"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}, process)
    finally:
        process.terminate()
        process.wait()


def write_hostfile(path: Path, slots: int = 1) -> Path:
    """A hostfile of both names."""
    path.write_text("# two names of one machine\n" + "".join(f"{name} slots={slots}\n" for name in ADDRESSES))
    return path


def _server_settings(folder: Path, port: int) -> str:
    listen = "".join(f"ListenAddress {address}\n" for address in ADDRESSES.values())
    return (
        f"Port {port}\n{listen}HostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder / 'user_key.pub'}\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nMaxStartups 100\n"
    )


def _client_settings(folder: Path, port: int) -> str:
    hosts = "".join(
        f"Host {name}\n  HostName {address}\n"
        for name, address in {**ADDRESSES, DEAD_HOST: "127.0.0.3"}.items()
    )
    return (
        f"{hosts}Host *\n  Port {port}\n  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking accept-new\n"
    )


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    last = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            said = log.read_text() if log.exists() else ""
            if process.poll() is not None or time.monotonic() > last:
                pytest.skip(f"sshd does not start here: {said or sys.platform}")
            time.sleep(0.05)
