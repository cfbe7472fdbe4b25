"""Preparing a large split is seen to go on."""

import pytest

from megatune.data import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """`clock(100.0, ...)` makes these the times that are read, one after another."""

    def set_times(*times: float) -> None:
        left = iter(times)
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(left))

    return set_times


def test_rows_are_told_every_few_seconds_with_their_rate_and_what_is_left(clock, capsys):
    clock(100.0, 100.0, 101.0, 110.0, 111.0, 120.0, 120.0)
    spoken = progress.Spoken("validation", every_s=5.0)
    spoken.begin(num_bytes=4000, num_workers=1)
    for num_rows in (1000, 10_000, 11_000, 20_000):
        spoken.update(num_rows, num_bytes=num_rows // 10)
    spoken.end()
    said = capsys.readouterr()
    assert said.out == ""
    first, second, last = said.err.splitlines()
    assert first == "megatune: preparing validation: 10.0K rows, 1000 a second, 25%, about 30.0 s left"
    assert second.endswith("20.0K rows, 1000 a second, 50%, about 20.0 s left")
    assert last == "megatune: validation: tokenised 20.0K rows in 20.0 s, 1000 a second"


def test_work_that_is_done_at_once_is_not_told(clock, capsys):
    clock(100.0, 100.0, 100.5, 101.0)
    spoken = progress.Spoken("train", every_s=5.0)
    spoken.begin(num_bytes=10, num_workers=1)
    spoken.update(3, num_bytes=10)
    spoken.end()
    assert capsys.readouterr().err == ""
