import socket

import pytest

from megatune.errors import LaunchError
from megatune.launch.devshm import remove_leftover_buffers
from megatune.launch.ports import reserve_port


def test_two_starts_at_once_never_get_the_same_port():
    with reserve_port(21000) as first, reserve_port(21000) as second:
        assert first != second


def test_a_port_comes_free_when_its_job_has_ended():
    with reserve_port(21100) as first:
        pass
    with reserve_port(21100) as again:
        assert again == first


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_a_program_listens_on_is_not_chosen(address):
    with socket.create_server((address, 0)) as server:
        taken = server.getsockname()[1]
        with reserve_port(taken) as port:
            assert port > taken


def test_a_port_that_failed_before_is_avoided():
    with reserve_port(21200) as first:
        pass
    with reserve_port(21200, avoid={first}) as other:
        assert other != first


def test_no_free_port_is_told(monkeypatch):
    monkeypatch.setattr("megatune.launch.ports._is_free", lambda _port: False)
    with pytest.raises(LaunchError, match="no free TCP port between 21000 and 21999"), reserve_port(21000):
        pass


def test_only_buffers_of_our_own_user_address_and_port_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 1000)
    ours = [f"deepspeed_allreduce_buffer_1000_127.0.0.1_20001_{rank}" for rank in (0, 11)]
    others = [
        "deepspeed_allreduce_buffer_1000_127.0.0.1_20002_0",  # another run
        "deepspeed_allreduce_buffer_1001_127.0.0.1_20001_0",  # another user
        "deepspeed_allreduce_buffer_1000_127.0.0.1_20001_0_x",
        "torch_shm",
    ]
    for name in [*ours, *others]:
        (tmp_path / name).touch()
    removed = remove_leftover_buffers("127.0.0.1", 20001, tmp_path)
    assert sorted(file.name for file in removed) == sorted(ours)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)
