"""Host facts over MPI when a rank says nothing: who is missing is named, and nobody waits for ever."""

import pytest

from megatune.doctor.mpi_gather import gather
from megatune.errors import LaunchError


class Message:
    def __init__(self, value):
        self.value = value

    def recv(self):
        return self.value


class FirstRankOf:
    """COMM_WORLD as rank 0 sees it, with the messages that have arrived."""

    def __init__(self, size, arrived):
        self.size, self.arrived = size, arrived

    def Get_rank(self):  # noqa: N802 (MPI's name)
        return 0

    def Get_size(self):  # noqa: N802 (MPI's name)
        return self.size

    def improbe(self, *, source, tag):
        assert tag
        return Message(self.arrived[source]) if source in self.arrived else None


def test_the_facts_of_all_ranks_come_by_rank():
    world = FirstRankOf(3, {2: {"torch": "c"}, 1: {"torch": "b"}})

    assert gather(world, {"torch": "a"}, within_s=5) == {
        0: {"torch": "a"},
        1: {"torch": "b"},
        2: {"torch": "c"},
    }


def test_ranks_that_say_nothing_are_named():
    with pytest.raises(LaunchError, match=r"rank\(s\) 1, 3 of 4 said nothing over MPI"):
        gather(FirstRankOf(4, {2: {}}), {}, within_s=0.02)
