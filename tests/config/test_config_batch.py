import pytest

from megatune.config import BatchShape, resolve_batch
from megatune.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "data_parallel", "expected"),
    [
        ([], 1, (1, 1, 1)),
        ([], 4, (1, 1, 4)),
        (["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=3"], 4, (2, 3, 24)),
        (["train.per_device_train_batch_size=2", "train.global_batch_size=32"], 4, (2, 4, 32)),
        (["train.tokens_per_step=8192"], 2, (1, 4, 8)),
        (["train.tokens_per_step=8192", "data.max_seq_length=512"], 2, (1, 8, 16)),
    ],
)
def test_a_step_holds_the_sequences_asked_for(load, minimal, overrides, data_parallel, expected):
    shape = resolve_batch(load(minimal, *overrides).run, data_parallel)
    micro, accumulation, global_sequences = expected
    assert shape == BatchShape(micro=micro, accumulation=accumulation, global_sequences=global_sequences)


@pytest.mark.parametrize(
    ("overrides", "data_parallel", "fix"),
    [
        (["train.global_batch_size=10"], 4, "Use 8 or 12"),
        (["train.global_batch_size=3"], 4, "Use 4, or"),
        (["train.tokens_per_step=10240"], 4, "data.max_seq_length 1024 = 4096. Use 8192 or 12288"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(load, minimal, overrides, data_parallel, fix):
    run = load(minimal, *overrides).run
    with pytest.raises(ConfigError) as refused:
        resolve_batch(run, data_parallel)
    assert fix in str(refused.value)


def test_the_values_named_as_nearest_are_accepted(load, minimal):
    for size in (8, 12):
        assert resolve_batch(load(minimal, f"train.global_batch_size={size}").run, 4).global_sequences == size
