"""A real Slurm cluster on one machine: every host lives in namespaces of its own.

A host is one `unshare` process with its own network, host name, IPC, mounts and process ids; cables
are veth pairs to a bridge in the controller's namespace. Nothing has a name outside of them, nothing
listens in the machine's own network, and the kernel clears a host away when its first process dies,
which is also how a power cut is made. Several labs can stand side by side.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab_files import slurm_files

CONTROLLER = "ctl"
PROGRAMS = (
    "slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "sshd", "ssh-keygen",
    "unshare", "nsenter", "ip",
)  # fmt: skip
PACKAGES = (
    "slurmctld slurmd slurm-client slurm-wlm-basic-plugins slurmdbd slurm-wlm-mysql-plugin munge mariadb-server "
    "openssh-server openssh-client iproute2 openmpi-bin libpmix-dev"
)
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def why_not() -> str | None:
    """Why no lab can be started here, or None."""
    if os.geteuid() != 0:
        return "not root: network namespaces cannot be made"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"missing programs: {', '.join(missing)} (apt-get install {PACKAGES})" if missing else None


@dataclass
class Host:
    """A running host: `holder` is the unshare process, `init` the first process inside (its pid out here)."""

    name: str
    holder: subprocess.Popen[bytes]
    init: int


class Lab:
    """A controller (which is the login node, too) and `num_nodes` nodes n1, n2, ... with fake GPUs."""

    def __init__(self, *, num_nodes: int = 2, gpus: int = 2, cpus: int = 4, memory_mb: int = 12000) -> None:
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        # Short, because unix sockets lie in it, and open to the database's own user.
        self.folder = Path(tempfile.mkdtemp(prefix="mt-lab-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._hosts: dict[str, Host] = {}
        self._environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.folder / "etc/slurm.conf")}
        for path, text in slurm_files(self.folder, num_nodes, gpus, cpus, memory_mb).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o600 if path.name == "slurmdbd.conf" else 0o644)

    def start(self) -> None:
        """Bring everything up; about four seconds."""
        self._make_keys()
        for host in (CONTROLLER, *self.nodes):
            self._up(host)
        self._start_authentication()
        self._start_accounting()
        self.run(CONTROLLER, ["slurmctld", "-c", "-f", self._environment["SLURM_CONF"]])
        for node in self.nodes:
            self._start_daemons(node)
        self.wait("all nodes idle", self._all_idle, timeout_s=60)

    def stop(self) -> None:
        """End every host, and with it all it ran; take the folder away."""
        for name in reversed(list(self._hosts)):
            self.crash(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        host: str,
        command: Sequence[object],
        *,
        cwd: Path | None = None,
        timeout_s: float = 120,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` on a host."""
        done = subprocess.run(
            [*self._enter(host), "env", "-C", str(cwd or Path.cwd()), *map(str, command)],
            env={**self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{host}: {command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start_process(self, host: str, command: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
        """Start `command` on a host and do not wait for it. It ends with its host at the latest."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [*self._enter(host), *map(str, command)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def crash(self, host: str) -> None:
        """Cut a host's power: the kernel ends all its processes at once."""
        gone = self._hosts.pop(host)
        os.kill(gone.init, signal.SIGKILL)
        gone.holder.wait(timeout=30)

    def boot(self, node: str) -> None:
        """Bring a node back after `crash`."""
        self._up(node)
        self._start_daemons(node)

    def cut_cable(self, node: str) -> None:
        """Take a node off the network; it runs on."""
        self.run(node, ["ip", "link", "set", "eth0", "down"])

    def mend_cable(self, node: str) -> None:
        self.run(node, ["ip", "link", "set", "eth0", "up"])

    def wait(self, what: str, done: Callable[[], object], *, timeout_s: float) -> None:
        """Ask `done` until it is true. Raises TimeoutError that names `what`."""
        last = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > last:
                queue = self.run(CONTROLLER, ["squeue", "-a"], check=False).stdout
                nodes = self.run(CONTROLLER, ["sinfo", "-N", "-l"], check=False).stdout
                raise TimeoutError(f"not within {timeout_s:g} s: {what}\n{queue}\n{nodes}")
            time.sleep(0.25)

    def _enter(self, host: str) -> list[str]:
        return ["nsenter", "-t", str(self._hosts[host].init), "-n", "-u", "-i", "-m", "-p", "--"]

    def _all_idle(self) -> bool:
        answer = self.run(CONTROLLER, ["sinfo", "-h", "-N", "-p", "gpu", "-o", "%T"], check=False)
        return answer.stdout.split() == ["idle"] * len(self.nodes)

    def _up(self, name: str) -> None:
        # The holder dies with the tests, and --kill-child takes the host along.
        separate = [
            "-n",
            "-u",
            "-i",
            "-m",
            "-p",
            "-f",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]
        start = ["bash", str(self.folder / "etc/host.sh"), name]
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *separate, *start],
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / f"log/host-{name}.log").open("ab"),
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        ready = self.folder / f"run/{name}.ready"
        self.wait_until(f"host {name}", lambda: ready.exists() or holder.poll() is not None)
        ready.unlink()
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._hosts[name] = Host(name=name, holder=holder, init=int(children[0]))
        self.run(name, ["ip", "link", "set", "lo", "up"])
        if name == CONTROLLER:
            self.run(name, ["ip", "link", "add", "br0", "type", "bridge"])
            self.run(name, ["ip", "addr", "add", "10.77.0.254/24", "dev", "br0"])
            self.run(name, ["ip", "link", "set", "br0", "up"])
        else:
            self._lay_cable(name)

    def wait_until(self, what: str, done: Callable[[], object]) -> None:
        last = time.monotonic() + 20
        while not done():
            if time.monotonic() > last:
                raise TimeoutError(f"{what}: see {self.folder}/log")
            time.sleep(0.02)

    def _lay_cable(self, node: str) -> None:
        controller, peer = self._hosts[CONTROLLER], f"to-{node}"
        # The peer's namespace is named by a pid, which must be the one this machine gives it.
        ends = ["eth0", "type", "veth", "peer", "name", peer, "netns", str(controller.init)]
        subprocess.run(
            ["nsenter", "-t", str(self._hosts[node].init), "-n", "ip", "link", "add", *ends],
            env=self._environment,
            check=True,
        )
        self.run(CONTROLLER, ["ip", "link", "set", peer, "master", "br0", "up"])
        self.run(node, ["ip", "addr", "add", f"10.77.0.{node[1:]}/24", "dev", "eth0"])
        self.run(node, ["ip", "link", "set", "eth0", "up"])

    def _make_keys(self) -> None:
        (self.folder / "etc/munge.key").write_bytes(os.urandom(1024))
        (self.folder / "etc/munge.key").chmod(0o400)
        for key in ("ssh/host_key", "ssh/id_ed25519"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(self.folder / "ssh/id_ed25519.pub", self.folder / "ssh/authorized_keys")
        (self.folder / "ssh/id_ed25519").chmod(0o600)

    def _start_authentication(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir()
        options = {
            "key-file": self.folder / "etc/munge.key",
            "socket": folder / "socket",
            "pid-file": folder / "pid",
        }
        options |= {"log-file": self.folder / "log/munged.log", "seed-file": folder / "seed"}
        self.run(CONTROLLER, ["munged", "--force", *(f"--{key}={value}" for key, value in options.items())])

    def _start_accounting(self) -> None:
        database, log = self.folder / "db", self.folder / "log/mariadb.log"
        database.mkdir()
        shutil.chown(database, "mysql")
        options = ["--no-defaults", "--user=mysql", f"--datadir={database / 'data'}"]
        self.run(
            CONTROLLER,
            ["mariadb-install-db", *options, "--auth-root-authentication-method=normal", "--skip-test-db"],
        )
        socket = f"--socket={database / 'socket'}"
        small = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"]
        address = ["--bind-address=127.0.0.1", "--port=3306", socket, f"--pid-file={database / 'pid'}"]
        self.start_process(CONTROLLER, ["mariadbd", *options, *address, *small], log)
        client = ["mariadb", "--no-defaults", socket, "-u", "root", "-e"]
        self.wait_until(
            "the database", lambda: self.run(CONTROLLER, [*client, "select 1"], check=False).returncode == 0
        )
        for host in ("localhost", "127.0.0.1"):
            grant = f"grant all on slurm_acct_db.* to slurm@'{host}' identified by 'lab'"
            self.run(CONTROLLER, [*client, grant])
        self.run(CONTROLLER, ["slurmdbd"])
        listed = ["sacctmgr", "-n", "list", "cluster"]
        self.wait_until("accounting", lambda: self.run(CONTROLLER, listed, check=False).returncode == 0)

    def _start_daemons(self, node: str) -> None:
        self.run(node, ["/usr/sbin/sshd", "-f", self.folder / "etc/sshd_config"])
        (self.folder / f"spool/{node}").mkdir(parents=True, exist_ok=True)
        self.run(node, ["slurmd", "-N", node, "-f", self._environment["SLURM_CONF"]])
