"""A set that several processes make together is that of one process, and so are its complaints.

The processes are threads here; `test_prepare_with_mpi` starts real ones.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from data_sources import preparation

from megatune.data import jsonfiles, shared
from megatune.data.team import ALONE
from megatune.errors import DataError

ROWS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(9) for b in range(9)]
BLOCK_BYTES = 200
"""About five of the rows."""


class ThreadTeam:
    """One of `size` threads that take the same steps."""

    def __init__(self, rank, size, barrier, answers):
        self.rank, self.size, self._barrier, self._answers = rank, size, barrier, answers

    def each(self, act):
        kept = []
        self.gather(lambda: kept.append(act()))
        return kept[0]

    def first(self, act):
        return self.gather(lambda: act() if self.rank == 0 else None)[0]

    def gather(self, act):
        try:
            self._answers[self.rank] = (act(), None)
        except Exception as error:
            self._answers[self.rank] = (
                None,
                f"{'' if isinstance(error, DataError) else 'unexpected: '}{error}",
            )
        self._barrier.wait(timeout=60)
        found = list(self._answers)
        self._barrier.wait(timeout=60)
        for _, problem in found:
            if problem is not None:
                raise DataError(problem)
        return [value for value, _ in found]


def teams(size):
    barrier, answers = threading.Barrier(size), [None] * size
    return [ThreadTeam(rank, size, barrier, answers) for rank in range(size)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(jsonfiles, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture
def prepared_by(tmp_path, gpt2_like):
    """`prepared_by(size, rows) -> what each process got`, a set or an error, below tmp_path / str(size)."""

    def run(size, lines, **changed):
        file = tmp_path / "train.jsonl"
        file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))

        def one(team):
            try:
                return preparation([file], gpt2_like, tmp_path / str(size), team=team, **changed).prepare()
            except DataError as error:
                return str(error)

        if size == 1:
            return [one(ALONE)]
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, teams(size)))

    return run


def files_of(prepared):
    return {path.name: path.read_bytes() for path in prepared.folder.iterdir()}


@pytest.mark.parametrize("size", [2, 3, 5, 30])
@pytest.mark.parametrize("num_rows", [3, 5, len(ROWS)])
def test_the_files_are_those_of_one_process(prepared_by, tmp_path, size, num_rows):
    rows = [*ROWS[: num_rows - 1], {"prompt": "a", "completion": ""}]  # one that is dropped
    (alone,) = prepared_by(1, rows)
    together = prepared_by(size, rows)
    assert len(together) == size
    assert {prepared.folder for prepared in together} == {tmp_path / str(size) / alone.fingerprint}
    assert files_of(together[0]) == files_of(alone)
    assert [path.name for path in (tmp_path / str(size)).iterdir()] == [alone.fingerprint]


@pytest.mark.parametrize("packing", [True, False])
def test_cut_and_dropped_rows_are_counted_once(prepared_by, packing):
    rows = [*ROWS[:20], {"prompt": "2 =", "completion": " 4" * 100}, {"prompt": "a", "completion": ""}]
    (alone,) = prepared_by(1, rows, packing=packing)
    for prepared in prepared_by(3, rows, packing=packing):
        assert prepared.report == alone.report


@pytest.mark.parametrize(
    "lines",
    [
        [*ROWS[:7], {"body": "x"}, *ROWS[:40]],  # tokenised by the second process
        [*ROWS[:22], {"body": "x"}, {"prompt": 4}, *ROWS],  # two problems in one batch
        [*ROWS[:12], {"body": "first"}, *ROWS[:8], {"body": "second"}, *ROWS],  # in two processes' batches
        [*ROWS[:12], "{broken\n", *ROWS[:8], {"body": "second"}],  # cannot be read, by anybody
        [*ROWS[:9], {"body": "the last of its batch"}, "{broken\n", *ROWS],
        [*ROWS[:10], "{broken\n"],
        [],
        [{"prompt": "a", "completion": ""}] * 12,  # nothing to train on, in any process
    ],
)
@pytest.mark.parametrize("size", [2, 3])
def test_the_complaint_is_that_of_one_process_on_all_and_nothing_stays(prepared_by, tmp_path, lines, size):
    (alone,) = prepared_by(1, lines)
    assert isinstance(alone, str)
    assert prepared_by(size, lines) == [alone] * size
    assert list((tmp_path / str(size)).iterdir()) == []


def test_a_set_that_is_there_is_used_without_reading_the_rows_again(prepared_by, monkeypatch):
    first = prepared_by(2, ROWS)
    monkeypatch.setattr(shared, "write_part", None)
    assert [again.folder for again in prepared_by(2, ROWS)] == [one.folder for one in first]


def test_a_token_that_the_model_has_no_row_for_is_told_on_all(prepared_by):
    (alone,) = prepared_by(1, ROWS, vocab_size=20)
    assert "embedding of the model has 20 rows" in alone
    assert prepared_by(3, ROWS, vocab_size=20) == [alone] * 3
