import pytest

from megatune.errors import ConfigError
from megatune.launch.hostfile import Host, parse_hostfile, read_hostfile


def parsed(text: str) -> list[tuple[str, int]]:
    return [(host.name, host.slots) for host in parse_hostfile(text, source="hosts")]


def test_hosts_are_read_in_their_order_past_comments_and_blank_lines():
    text = "# the cluster\n\nnode02 slots=8\n  node01\tslots=4   # the small one\r\n\n"
    assert parsed(text) == [("node02", 8), ("node01", 4)]


@pytest.mark.parametrize("name", ["me@node01", "10.0.0.7", "fe80::1%eth0", "[2001:db8::1]", "gpu_1.site.org"])
def test_whatever_ssh_takes_as_a_host_is_taken(name):
    assert parsed(f"{name} slots=1") == [(name, 1)]


def test_all_wrong_lines_are_told_at_once_with_their_numbers():
    text = "node01\n\nnode02 slots=0\nnode03 slots=2 slots=3\nnode04 slots=two\nnode05 gpus=2\nnode06 slots=1"
    with pytest.raises(ConfigError) as told:
        parsed(text)
    assert [problem.partition(":")[0] for problem in told.value.problems] == [
        "line 1",
        "line 3",
        "line 4",
        "line 5",
        "line 6",
    ]
    assert str(told.value).startswith("hosts has 5 problems")


@pytest.mark.parametrize("second", ["node01", "NODE01", "me@node01"])
def test_a_host_that_stands_there_twice_is_refused(second):
    with pytest.raises(ConfigError, match=r"line 2: .* stands in line 1 already"):
        parsed(f"node01 slots=1\n{second} slots=2")


@pytest.mark.parametrize("name", ["-oProxyCommand=evil", "$(evil)", "`evil`", "a;b", "a'b", "ünode", "me@-x"])
def test_a_name_that_ssh_or_a_shell_would_take_for_something_else_is_refused(name):
    with pytest.raises(ConfigError, match="is no name of a host"):
        parsed(f"{name} slots=1")


def test_a_file_without_hosts_is_refused():
    with pytest.raises(ConfigError, match="names no host; write one line `host slots=N`"):
        parsed("# nobody\n")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"launch\.hostfile = .*hosts cannot be read: No such file"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"node\xff slots=1")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_text("node slots=2")
    assert read_hostfile(tmp_path / "hosts") == [Host(name="node", slots=2)]
