"""The line through measured messages, and the file it is kept in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatune.plan.links import Link, Links, fit_link, place_key, read_links, write_links

SIZES = (8, 2**16, 2**20, 2**27)


@given(st.floats(1e-7, 1e-2), st.floats(1e6, 1e12))
def test_the_fit_finds_the_line_that_made_the_points(latency_s, bytes_per_s):
    link = fit_link([(size, latency_s + size / bytes_per_s) for size in SIZES])

    assert link is not None
    assert link.seconds(2**24) == pytest.approx(latency_s + 2**24 / bytes_per_s, rel=1e-3)


def test_small_messages_decide_the_latency_although_large_ones_take_longer():
    # 20 us and 1 GB/s, the largest message measured 20 % too slow: an unweighted fit gives a latency below 0.
    points = [(8, 20e-6), (2**16, 86e-6), (2**20, 1.07e-3), (2**27, 0.161)]

    link = fit_link(points)

    assert link is not None
    assert link.latency_s == pytest.approx(20e-6, rel=0.15)
    assert link.bytes_per_s == pytest.approx(1e9, rel=0.2)


@pytest.mark.parametrize("points", [[], [(8, 1e-4)], [(8, 1e-4), (8, 2e-4)], [(8, 1e-2), (2**20, 1e-4)]])
def test_points_that_make_no_line_give_none(points):
    assert fit_link(points) is None


def test_a_latency_below_zero_is_zero():
    link = fit_link([(1000, 1e-6), (2000, 3e-6)])

    assert link is not None
    assert link.latency_s == 0


def record(num_nodes: int) -> Links:
    intra = Link(latency_s=1e-5, bytes_per_s=1e9, num_points=3)
    return Links(
        measured_at="2026-01-31T12:00:00Z",
        backend="gloo",
        num_nodes=num_nodes,
        intra_node=intra,
        inter_node=None,
    )


def test_links_are_kept_by_place_beside_each_other(tmp_path):
    file = tmp_path / "cache" / "links.json"
    gpu, host = (
        place_key(cluster="c", partition="gpu", host="n1"),
        place_key(cluster=None, partition=None, host="vm"),
    )

    write_links(file, gpu, record(4))
    write_links(file, host, record(1))
    write_links(file, gpu, record(2))

    assert read_links(file, "c/gpu") == record(2)
    assert read_links(file, "vm") == record(1)
    assert read_links(file, "c/cpu") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99, "links": {"vm": {}}}'])
def test_a_file_that_is_none_of_ours_is_unknown_and_can_be_written_again(tmp_path, text):
    file = tmp_path / "links.json"
    file.write_text(text)

    assert read_links(file, "vm") is None
    write_links(file, "vm", record(1))
    assert read_links(file, "vm") == record(1)
