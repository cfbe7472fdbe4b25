import socket

import pytest

from megatune.errors import LaunchError
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
