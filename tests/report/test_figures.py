"""Pictures on the disk: whole, or not there."""

import resource
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from megatune.report.figures import save_figure


@pytest.fixture
def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2])
    return figure


@contextmanager
def at_most_100_bytes():
    """A file of this process can hold no more; nor can that with the output of the tests, so only inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_picture_has_the_format_of_its_ending(drawn, tmp_path):
    save_figure(drawn, tmp_path / "a.png")
    save_figure(drawn, tmp_path / "a.svg")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_picture_without_room_leaves_the_old_one_and_no_scratch_file(drawn, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old one")

    with pytest.raises(OSError, match=f"cannot write: .*{path}"), at_most_100_bytes():
        save_figure(drawn, path)

    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_code_keeps_its_words(tmp_path):
    class Broken(Figure):
        def savefig(self, *_given, **_options):
            raise OSError("encoder error -2 when writing image file")

    with pytest.raises(OSError, match="cannot write: encoder error -2"):
        save_figure(Broken(), tmp_path / "a.png")
