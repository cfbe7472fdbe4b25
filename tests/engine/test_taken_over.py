"""What megatune does in the place of DeepSpeed's gathers and reductions gives the same numbers."""

from pathlib import Path
from typing import Any

import pytest
from taken_over_cases import WAYS, largest_difference, see_what_others_write, train_in_all_ways
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world


@pytest.mark.parametrize(
    ("num_ranks", "tp", "accumulation", "precision", "apart"),
    [
        (2, 1, 2, "fp32", 0.0),  # two numbers have one sum
        (4, 2, 2, "fp32", 0.0),
        (4, 1, 1, "fp32", 1e-6),  # four are added in another order
        (2, 1, 2, "bf16", 2e-3),  # DeepSpeed adds the ranks' gradients in bf16, megatune in fp32
    ],
)
def test_every_way_to_gather_and_reduce_trains_the_same(
    worlds: Worlds,
    session_folder: Path,
    num_ranks: int,
    tp: int,
    accumulation: int,
    precision: str,
    apart: float,
) -> None:
    folder = str(write_tiny_model("llama-tied-9-heads", session_folder))  # 101 x 80: pieces are padded

    found = worlds.run(num_ranks, train_in_all_ways, folder, precision, tp, accumulation)[0]

    # Where a weight is kept changes no bit.
    assert_close(found["kept and sent"], found["DeepSpeed"], 0.0)
    assert_close(found["kept and shared"], found["shared gradients only"], 0.0)
    assert_close(found["kept and shared"], found["DeepSpeed"], apart)
    assert [tell(found[way]["description"]) for way in WAYS] == [
        (False, False, False),
        (True, True, True),
        (True, False, False),
        (False, False, True),
    ]


def assert_close(one: dict[str, Any], other: dict[str, Any], apart: float) -> None:
    for kind in ("losses", "norms"):
        assert one[kind] == pytest.approx(other[kind], rel=apart, abs=0), kind
    assert largest_difference(one["weights"], other["weights"]) <= apart * 4


def tell(description: str) -> tuple[bool, ...]:
    return tuple(
        words in description
        for words in (
            "weights kept gathered",
            "gathered in shared memory",
            "gradients through shared memory",
        )
    )


def test_ranks_see_what_others_write_and_none_has_memory_that_one_may_not_open(worlds: Worlds) -> None:
    ranks: list[Any] = worlds.run(2, see_what_others_write)

    assert ranks == [(True, True, 5), (True, True, 5)]
