"""The lab itself: hosts are apart from this machine and from each other, and nothing of them stays."""

import subprocess
from pathlib import Path

import pytest
from lab import Lab, why_not

pytestmark = pytest.mark.cluster


def test_a_host_has_its_own_name_address_and_processes(lab):
    addresses = lab.run("n2", ["ip", "-o", "-4", "addr", "show", "eth0"]).stdout
    assert lab.run("n2", ["hostname"]).stdout == "n2\n"
    assert "10.77.0.2/24" in addresses
    assert "10.77.0.2" not in subprocess.run(["ip", "addr"], capture_output=True, text=True).stdout
    assert lab.run("n1", ["ssh", "n2", "hostname"]).stdout == "n2\n"


def test_srun_reaches_all_nodes(lab):
    out = lab.run("ctl", ["srun", "-N3", "-n3", "hostname"]).stdout
    assert sorted(out.split()) == ["n1", "n2", "n3"]


def test_a_lab_that_was_stopped_leaves_nothing_behind():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    lab = Lab(num_nodes=1)
    lab.start()
    inside = [host.holder.pid for host in lab._hosts.values()] + [host.init for host in lab._hosts.values()]

    lab.stop()

    assert not lab.folder.exists()
    assert lab.folder.name not in Path("/proc/self/mounts").read_text()
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]
    everywhere = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert lab.folder.name not in everywhere
