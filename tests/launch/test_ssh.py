"""`run_ranks_over_ssh` against a real sshd: two names of this machine, whose ranks are small scripts."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from launcher_process import SAVING_RANK, STUBBORN_RANK, Launcher, is_alive, wait_until
from ssh_hosts import ADDRESSES, DEAD_HOST, SshHosts

from megatune.launch.host_process import remote_command
from megatune.launch.node_messages import Hello
from megatune.launch.ssh import master_address

OVER_SSH = """
import json, sys
from pathlib import Path
from megatune.errors import MegatuneError
from megatune.launch.hostfile import Host
from megatune.launch.ssh import SshJob, run_ranks_over_ssh
asked = json.loads(sys.argv[1])
hosts = [Host(name=name, slots=slots) for name, slots in asked["hosts"]]
job = SshJob(command=[sys.executable, *asked["command"]], hosts=hosts, python=asked["python"],
    folder=Path(asked["folder"]), log_dir=Path("logs").absolute(), environment=asked["environment"])
try:
    result = run_ranks_over_ssh(job)
except MegatuneError as error:
    print(f"megatune: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
Path("result.json").write_text(json.dumps(vars(result)))
sys.exit(result.exit_code)
"""


@pytest.fixture
def launch_over_ssh(start_launcher, ssh_hosts: SshHosts, tmp_path: Path):
    """`launch_over_ssh(rank_code, **asked) -> Launcher`: one rank on each of the two hosts."""

    def start(rank_code: str, **asked: object) -> Launcher:
        usual = {
            "hosts": [(name, 1) for name in ADDRESSES],
            "command": ["rank.py"],
            "python": sys.executable,
            "folder": str(tmp_path),
            "environment": {},
        }
        environment = {**os.environ, **ssh_hosts.environment}
        return start_launcher(rank_code, {**usual, **asked}, code=OVER_SSH, env=environment)

    return start


def test_every_rank_gets_its_place_and_rank_0_is_shown(launch_over_ssh):
    launcher = launch_over_ssh(
        """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MEGATUNE_LAUNCHER EXTRA".split()
print("place", *(os.environ[name] for name in names), Path.cwd().name)
print("on error", rank, file=sys.stderr)
Path(f"port-{rank}").write_text(os.environ["MASTER_PORT"])
""",
        hosts=[("node-a", 1), ("node-b", 2)],
        environment={"EXTRA": "a 'b' $(touch never) \n\u20ac"},
    )
    out, err = launcher.finish()
    assert launcher.process.returncode == 0, err
    places = ["0 0 3 1", "1 0 3 2", "2 1 3 2"]
    extra, folder = "a 'b' $(touch never) \n\u20ac", launcher.folder.name
    for rank, place in enumerate(places):
        assert f"place {place} 127.0.0.1 ssh {extra} {folder}" in launcher.log(rank)
    assert (out, err) == (launcher.log(0).partition("===\n")[2].replace("on error 0\n", ""), "on error 0\n")
    assert len({(launcher.folder / f"port-{rank}").read_text() for rank in range(3)}) == 1
    assert not (launcher.folder / "never").exists()


def test_arguments_and_folders_reach_the_ranks_as_they_are(launch_over_ssh, tmp_path):
    folder = tmp_path / "a 'b' $(touch never); \"c\""
    folder.mkdir()
    arguments = ["-c", "import sys; print(sys.argv[1:])", "$(touch never)", "`touch never`", "'", "a b", "\n"]
    launcher = launch_over_ssh("", command=arguments, folder=str(folder))
    out, err = launcher.finish()
    assert launcher.process.returncode == 0, err
    assert out == f"{arguments[2:]}\n"
    assert not list(tmp_path.rglob("never"))


def test_the_remote_shell_is_given_one_quoted_command():
    told = remote_command("/opt/my env/python", Path("/shared/it's"), {"PYTHONPATH": "/a b"})
    assert told == (
        "cd '/shared/it'\"'\"'s' && exec env 'PYTHONPATH=/a b' '/opt/my env/python' -P -m megatune.launch.node"
    )


@pytest.mark.parametrize(("codes", "expected"), [([0, 75], 75), ([0, 7], 1), ([75, 2], 2)])
def test_the_ranks_exit_codes_make_one(launch_over_ssh, codes, expected):
    launcher = launch_over_ssh(f"sys.exit({codes}[rank])")
    launcher.finish()
    assert launcher.process.returncode == expected


def test_a_failing_rank_ends_those_of_the_other_host_and_is_named_with_its_traceback(launch_over_ssh):
    launcher = launch_over_ssh(
        "if rank == 1:\n    wait_for(0)\n    raise ValueError('the third shard is empty')\nsleep_through()"
    )
    launcher.finish()
    result = launcher.result()
    assert (launcher.process.returncode, result["failed_rank"]) == (1, 1)
    assert "rank 1 of 2 failed first: ended with exit code 1" in result["failure_text"]
    assert "ValueError: the third shard is empty" in result["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_a_killed_rank_is_named_though_its_peer_fails_too(launch_over_ssh):
    launcher = launch_over_ssh(
        """
wait_for(0, 1)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(0.01)
    if not Path(f"/proc/{Path('pid-1').read_text()}/fd/0").exists():
        raise RuntimeError("Connection reset by peer")
"""
    )
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "rank 1 of 2 failed first: killed (SIGKILL)" in str(launcher.result()["failure_text"])


def test_a_user_error_of_another_host_is_told_with_exit_code_2(launch_over_ssh):
    launcher = launch_over_ssh(
        "if rank == 1:\n    print('megatune: no such key', file=sys.stderr)\n    sys.exit(2)\nsleep_through()"
    )
    launcher.finish()
    assert launcher.process.returncode == 2
    assert launcher.result()["failure_text"] == "megatune: no such key"


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGINT, "SIGINT"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGHUP, "SIGTERM"),
        (signal.SIGUSR2, "SIGUSR2"),
    ],
)
def test_a_stop_reaches_the_ranks_of_all_hosts_and_the_job_ends_saved(launch_over_ssh, sent, received):
    launcher = launch_over_ssh(SAVING_RANK)
    launcher.wait_until_ready(2)
    launcher.process.send_signal(sent)
    launcher.finish()
    assert launcher.process.returncode == 75
    assert [(launcher.folder / f"saved-{rank}").read_text() for rank in range(2)] == [received] * 2


def test_a_second_stop_kills_the_ranks_of_all_hosts(launch_over_ssh):
    launcher = launch_over_ssh(STUBBORN_RANK)
    launcher.wait_until_ready(2)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(1.3)  # the same Ctrl-C may arrive twice within a second
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "killed by a second signal (SIGINT)" in launcher.result()["failure_text"]
    wait_until(lambda: not any(is_alive(pid) for pid in launcher.pids()))


def test_a_killed_launcher_leaves_no_rank_on_any_host(launch_over_ssh):
    launcher = launch_over_ssh(STUBBORN_RANK, hosts=[("node-a", 2), ("node-b", 1)])
    launcher.wait_until_ready(3)
    launcher.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in launcher.pids()), timeout_s=5)


def test_a_lost_connection_ends_the_job_and_names_the_host(launch_over_ssh, ssh_hosts):
    before = set(ssh_hosts.connections())
    launcher = launch_over_ssh(STUBBORN_RANK)
    launcher.wait_until_ready(2)
    lost, _ = sorted(set(ssh_hosts.connections()) - before)
    os.kill(lost, signal.SIGKILL)
    launcher.finish()
    text = str(launcher.result()["failure_text"])
    assert launcher.process.returncode == 1
    assert text.startswith("lost node-")
    assert "ssh ended with exit code 255" in text
    wait_until(lambda: not any(is_alive(pid) for pid in launcher.pids()))


def test_all_hosts_that_cannot_take_part_are_named_and_no_rank_starts(launch_over_ssh):
    launcher = launch_over_ssh("", hosts=[("node-a", 1), (DEAD_HOST, 1), ("no.such.host.invalid", 1)])
    _, err = launcher.finish()
    assert launcher.process.returncode == 1
    assert "2 of 3 hosts cannot take part; no rank was started" in err
    assert f"{DEAD_HOST}: ssh ended with exit code 255. `ssh {DEAD_HOST} true` must work" in err
    assert "Connection refused" in err
    assert "no.such.host.invalid: ssh ended with exit code 255" in err
    assert launcher.pids() == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"python": "/no/such/python"}, "There must be /no/such/python, with megatune, on every host"),
        ({"python": "/usr/bin/python3"}, "/usr/bin/python3 there has no megatune"),
        ({"folder": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_a_host_without_our_interpreter_or_folder_is_told_what_is_missing(launch_over_ssh, asked, problem):
    launcher = launch_over_ssh("", **asked)
    _, err = launcher.finish()
    assert launcher.process.returncode == 1
    assert "2 of 2 hosts cannot take part" in err
    assert problem in err


def test_a_port_that_is_taken_at_the_last_moment_is_replaced(launch_over_ssh):
    launcher = launch_over_ssh(
        """
port = int(os.environ["MASTER_PORT"])
if rank == 0 and not Path("first").exists():
    Path("first").write_text(str(port))
    raise RuntimeError(f"The server socket has failed to listen. port: {port}, name: EADDRINUSE")
if rank == 1 and not Path("first").exists():
    sleep_through()
print("met on", port)
"""
    )
    out, err = launcher.finish()
    first = (launcher.folder / "first").read_text()
    assert launcher.process.returncode == 0, err
    assert f"another program took port {first} first" in err
    assert "met on" in out
    assert f"met on {first}\n" not in out


def hello(host: str, address: str | None) -> Hello:
    return Hello(version="1", python="3", host=host, port=1, address=address)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
        (["127.0.0.1", "127.0.0.2"], "127.0.0.1"),
        (["127.0.0.1", "10.0.0.2"], "first"),  # the others would mean themselves by it
        (["fe80::1%eth0", "fe80::2%eth0"], "first"),
        (["2001:db8::1", "2001:db8::2"], "2001:db8::1"),
        ([None, "10.0.0.2"], "first"),
        (["127.0.0.1"], "127.0.0.1"),
    ],
)
def test_the_first_rank_is_met_at_an_address_that_all_hosts_understand(addresses, expected):
    hellos = [hello("first" if i == 0 else "other", address) for i, address in enumerate(addresses)]
    assert master_address(hellos) == expected
