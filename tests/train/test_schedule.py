"""The learning rate is transformers' own, step by step."""

from itertools import pairwise

import pytest
import torch
from parity_steps import tiny_run
from transformers import get_scheduler

from megatune.train.schedule import learning_rate_at, warmup_length

TOTAL = 40


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_schedule_equals_the_one_of_transformers(kind: str, warmup: int) -> None:
    train = tiny_run(
        "model", train={"lr_scheduler_type": kind, "warmup_steps": warmup, "learning_rate": 2e-4}
    ).train
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL)

    for step in range(TOTAL):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(step, train, TOTAL) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("asked", "steps"), [(0.1, 4), (0.03, 2), (0, 0), (1, 1), (5, 5)])
def test_a_warmup_below_one_is_a_share_of_all_steps(asked: float, steps: int) -> None:
    assert warmup_length(tiny_run("model", train={"warmup_steps": asked}).train, TOTAL) == steps


def test_a_range_test_rises_by_one_factor_a_step_over_five_decades_and_knows_no_warmup() -> None:
    changes = {"lr_scheduler_type": "range_test", "warmup_steps": 7, "learning_rate": 0.1}
    train = tiny_run("model", train=changes).train

    rates = [learning_rate_at(step, train, TOTAL) for step in range(TOTAL)]

    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(0.1)
    factors = [later / earlier for earlier, later in pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * (TOTAL - 1))
