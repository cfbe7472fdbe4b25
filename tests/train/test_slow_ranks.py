"""A rank that the others wait for is named, by what it takes itself: steps take equally long on all."""

import socket
from pathlib import Path

import pytest
from slow_rank_cases import COMPUTING, ROWS, train_with_a_slow_rank
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.config.health import HealthSection
from megatune.engine.own_time import StepTimes
from megatune.report.summary import summarise
from megatune.train.slow_ranks import SlowRanks, slow_ranks

STEPS, WINDOW, SLEEP_S = 8, 2, 0.3


@pytest.mark.parametrize(
    ("own_s", "step_s", "named"),
    [
        ([1.0, 1.0, 1.6, 1.0], 2.0, [2]),
        ([1.0, 1.0, 1.4, 1.0], 2.0, []),  # not one and a half times the others
        ([0.01, 0.01, 0.09, 0.01], 1.0, []),  # nine times the others, and nobody waits long for it
        ([1.0, 2.0], 2.0, [1]),
        ([1.0, 1.0, 9.0, 9.0, 1.0], 9.0, [2, 3]),
        ([5.0], 5.0, []),
    ],
)
def test_a_rank_is_slow_against_the_others_and_when_it_holds_them_up(
    own_s: list[float], step_s: float, named: list[int]
) -> None:
    assert [found.rank for found in slow_ranks(own_s, step_s, 1.5)] == named


def told(factors: list[float], **keys: object) -> list[tuple[int, int]]:
    """(step, rank) of the records, where rank 1 takes so many times what the others take in each step."""
    watch = SlowRanks(HealthSection.model_validate({"slow_rank_window": 2, **keys}), ["a", "b", "c"])
    found = []
    for step, factor in enumerate(factors, start=1):
        times = [StepTimes(own, max(1.0, factor)) for own in (1.0, factor, 1.0)]
        found += [(record.step, record.rank) for record in watch.stepped(step, times)]
    return found


def test_it_is_named_once_after_three_windows_and_again_when_it_has_recovered_meanwhile() -> None:
    assert told([2.0] * 12) == [(6, 1)]
    assert told([2.0] * 4 + [1.0] * 2 + [2.0] * 6) == [(12, 1)]
    assert told([2.0] * 6 + [1.0] * 2 + [2.0] * 6) == [(6, 1), (14, 1)]
    assert told([2.0] * 12, slow_rank_factor=0.0) == []
    assert told([2.0] * 12, slow_rank_factor=3.0) == []


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("slow") / "run.yaml",
        write_model_with_tokenizer(session_folder),
        data={"validation": None},
        train={"max_steps": STEPS, "gradient_accumulation_steps": 1},
        checkpoint={"save_at_end": False, "export_at_end": False},
        health={"slow_rank_window": WINDOW},
    )


@pytest.mark.world
@pytest.mark.parametrize("place", [ROWS, COMPUTING])
def test_a_rank_that_is_slowed_is_named_with_its_host(
    worlds: Worlds, run_file: Path, tmp_path: Path, place: str
) -> None:
    given = [f"train.output_dir={tmp_path}"]
    assert worlds.run(4, train_with_a_slow_rank, str(run_file), given, 2, place, SLEEP_S) == [0] * 4

    (record,) = metrics_of(tmp_path, "slow_rank")
    assert (record["rank"], record["host"]) == (2, socket.gethostname())
    assert record["step"] == 1 + 3 * WINDOW, "after the first step, which is not like others"
    assert record["own_seconds"] > SLEEP_S
    assert record["own_seconds"] > 1.5 * record["others_seconds"]
    assert record["step_seconds"] >= record["own_seconds"] * 0.9, "all steps are as slow as the rank"
    assert summarise(tmp_path / "metrics.jsonl").slow_ranks == {f"rank 2 on {socket.gethostname()}": 1}
