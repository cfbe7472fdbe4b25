"""Preparing a large split is seen to go on."""

import pytest

from megatune.train import inputs


def test_rows_that_are_prepared_are_told_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0, 112.0])
    monkeypatch.setattr(inputs.time, "monotonic", lambda: next(clock))
    progress = inputs.RowsProgress("validation", every_s=5.0)

    for num_rows in (1000, 6000, 7000, 12000):
        progress(num_rows)

    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert "preparing validation" in first
    assert "1000 a second" in first
    assert "1000 a second" in second
