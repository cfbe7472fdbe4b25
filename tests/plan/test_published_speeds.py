"""The time model predicts published runs with one set of constants for each GPU generation."""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from planner import error_of, groups, predicted, read_rows
from published import OTHER_ROWS, ROWS

from megatune.plan.speeds import SPEEDS
from megatune.plan.states import paper_state_bytes

EVERY_SOURCE = {"SC21 table 1": 10, "SC21 table 2": 12, "Korthikanti table 5": 8, "llm-foundry": 2,
                "torchtitan": 1, "Megatron-LM": 2}  # fmt: skip


def test_all_published_rows_are_there() -> None:
    assert {source: sum(r.source == source for r in ROWS) for source in EVERY_SOURCE} == EVERY_SOURCE
    assert set(SPEEDS) == {"ampere", "hopper"}  # one set of constants each, and no other


def test_half_of_all_rows_are_within_a_tenth_and_none_is_off_by_more_than_a_quarter() -> None:
    errors = [abs(error_of(row)) for row in ROWS]
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25


@pytest.mark.parametrize("name", [name for name in groups() if name.endswith("held out")])
def test_rows_that_the_fit_never_saw_are_predicted_as_well(name: str) -> None:
    errors = [abs(error_of(row)) for row in groups()[name]]
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25


def test_runs_of_other_papers_which_nobody_fitted_are_met_within_a_quarter() -> None:
    """10,000 and more GPUs, pipelines, 8 to 530 billion parameters: what the physics must carry to."""
    errors = [abs(error_of(row)) for row in OTHER_ROWS]
    assert len(errors) == 15
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25


def test_overlap_hides_all_but_one_part_of_tensor_parallel_communication() -> None:
    (row,) = (row for row in ROWS if row.name == "GPT-3 175B, 96 GPUs")
    overlapped, waited = (
        predicted(replace(row, practice=replace(row.practice, tensor_parallel_overlap=on)))
        for on in (True, False)
    )
    assert overlapped.tensor_parallel_s == pytest.approx(waited.tensor_parallel_s / 8)
    assert (overlapped.forward_s, overlapped.zero_s) == (waited.forward_s, waited.zero_s)


_TABLE = {  # billions of parameters -> data-parallel ranks -> GB at stages 1, 2, 3
    7.5: {1: (120, 120, 120), 4: (52.5, 41.25, 30), 64: (31.4, 16.6, 1.88), 1024: (30.1, 15.1, 0.12)},
    128: {4: (896, 704, 512), 64: (536, 284, 32), 1024: (513.5, 257.75, 2)},
    1000: {16: (4750, 2875, 1000), 64: (4187.5, 2218.75, 250), 1024: (4011.7, 2013.7, 15.6)},
}


@pytest.mark.parametrize("billions", sorted(_TABLE))
def test_the_zero_papers_table_of_model_states_is_reproduced(billions: float) -> None:
    for ranks, expected in _TABLE[billions].items():
        ours = [
            paper_state_bytes(billions * 1e9, stage=stage, data_parallel=ranks) / 1e9 for stage in (1, 2, 3)
        ]
        assert ours == pytest.approx(list(expected), abs=0.06, rel=1e-4)


def test_rows_of_a_file_are_predicted_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(
        '[{"name": "mine", "gpu": "a100-80gb", "seq": 2048, "nodes": 1, "gpus_per_node": 8, "micro_batch": 14,'
        '  "accumulation": 4, "step_seconds": 5.591, "config": {"model_type": "gpt2", "n_embd": 2048,'
        '  "n_layer": 24, "n_head": 16, "vocab_size": 50368, "n_positions": 2048}}]'
    )
    (row,) = read_rows(path)
    assert abs(error_of(row)) < 0.1
