"""A batch asks the model for exactly the losses of its documents, however they are put together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from megatune.data.batches import collate, evaluation_batches, step_batches
from megatune.data.examples import Example
from megatune.data.prepared import PreparedSet
from megatune.data.quality import Report
from megatune.data.sampler import Position, num_steps_per_epoch, position_of_step, step_rows
from megatune.tasks.labels import IGNORED


def document(ids, targets=None):
    is_target = np.ones(len(ids), dtype=bool) if targets is None else np.array(targets, dtype=bool)
    is_target[0] = False
    return Example(np.array(ids, dtype=np.int32), is_target)


DOCUMENTS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=9).map(
    lambda pairs: document([i for i, _ in pairs], [target for _, target in pairs])
)


def losses_asked_for(batch):
    """(token read, its position, token to predict) for every loss of a batch."""
    at = batch.labels != IGNORED
    read, position, label = batch.input_ids[at], batch.position_ids[at], batch.labels[at]
    return sorted(zip(read.tolist(), position.tolist(), label.tolist(), strict=True))


def losses_of(example):
    ids = example.input_ids.tolist()
    return [(ids[i - 1], i - 1, ids[i]) for i in range(1, len(ids)) if example.is_target[i]]


@settings(deadline=None)
@given(st.lists(st.lists(DOCUMENTS, min_size=1, max_size=4), max_size=4), st.sampled_from([0, 5]))
def test_a_batch_asks_for_each_loss_of_each_document_and_for_no_other(rows, pad_id):
    batch = collate(rows, pad_id=pad_id)
    documents = [example for row in rows for example in row]
    assert losses_asked_for(batch) == sorted(loss for example in documents for loss in losses_of(example))
    assert batch.num_targets == sum(int(example.is_target.sum()) for example in documents)
    assert batch.num_tokens == sum(len(example.input_ids) for example in documents)
    assert batch.sum_squared_lengths == sum(len(example.input_ids) ** 2 for example in documents)
    assert batch.input_ids.shape[1] % 8 == 0


def test_positions_begin_again_in_each_document_and_in_the_padding():
    batch = collate([[document([5, 6, 7]), document([8, 9])]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.labels.tolist() == [[6, 7, IGNORED, 9, IGNORED, IGNORED, IGNORED, IGNORED]]


def test_the_end_token_is_learned_although_it_is_also_the_padding():
    batch = collate([[document([5, 2])]], pad_id=2)
    assert batch.labels.tolist()[0] == [2] + [IGNORED] * 7


def test_a_rank_without_rows_gets_padding_that_asks_for_nothing():
    batch = collate([], pad_id=3)
    assert batch.input_ids.tolist() == [[3] * 8]
    assert (batch.num_targets, batch.num_tokens, batch.sum_squared_lengths) == (0, 0, 0)


def test_a_batch_is_as_wide_as_a_multiple():
    batch = collate([[document([5, 6, 7])]], pad_id=0, pad_to_multiple_of=5)
    assert batch.input_ids.shape == (1, 5)
    assert batch.num_targets == 2


def test_a_packed_batch_has_the_loss_of_its_documents_one_by_one():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **size, num_key_value_heads=2)).eval()

    def loss_sum(batch):
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        flat = output.logits.flatten(0, 1), batch.labels.flatten()
        return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum").item()

    documents = [document([3, 4, 5, 6]), document([7, 8], [0, 1]), document([9, 3, 3, 3, 1], [0, 0, 1, 0, 1])]
    alone = sum(loss_sum(collate([[one]], pad_id=0)) for one in documents)
    assert loss_sum(collate([documents], pad_id=0)) == pytest.approx(alone, rel=1e-5)
    assert loss_sum(collate([documents[:1], documents[1:]], pad_id=1)) == pytest.approx(alone, rel=1e-5)


@pytest.fixture
def prepared(tmp_path):
    """Eleven rows; row r holds one or two documents whose tokens are all 10 + r."""
    rows = [[document([10 + r] * (2 + r % 3))] * (1 + r % 2) for r in range(11)]
    examples = [example for row in rows for example in row]
    lengths = [len(example.input_ids) for example in examples]
    values = {
        "tokens": np.concatenate([example.input_ids for example in examples]),
        "is_target": np.concatenate([example.is_target for example in examples]),
        "example_offsets": np.cumsum([0, *lengths]),
        "row_examples": np.arange(len(examples)),
        "row_offsets": np.cumsum([0, *map(len, rows)]),
    }
    none = dict.fromkeys(Report.__dataclass_fields__, 0)
    return PreparedSet(
        folder=tmp_path,
        fingerprint="",
        num_rows=len(rows),
        num_examples=len(examples),
        num_tokens=sum(lengths),
        num_targets=int(values["is_target"].sum()),
        max_token_id=20,
        max_seq_length=8,
        packed=True,
        pad_id=0,
        report=Report(**none),
        arrays=values,
    )


@pytest.mark.parametrize(("data_parallel", "accumulation", "micro_batch"), [(1, 1, 4), (2, 2, 1), (4, 1, 1)])
def test_every_layout_takes_the_same_rows_in_the_same_step(
    prepared, data_parallel, accumulation, micro_batch
):
    layout = {"micro_batch": micro_batch, "accumulation": accumulation, "data_parallel": data_parallel}
    steps = []
    for step in range(num_steps_per_epoch(prepared.num_rows, 4)):
        position = position_of_step(step, num_rows=prepared.num_rows, global_rows=4)
        ranks = [
            step_batches(prepared, position, seed=3, **layout, dp_rank=rank) for rank in range(data_parallel)
        ]
        assert all(len(batches) == accumulation for batches in ranks)
        steps.append(
            sorted(loss for batches in ranks for batch in batches for loss in losses_asked_for(batch))
        )
    alone = {"micro_batch": 4, "accumulation": 1, "data_parallel": 1, "dp_rank": 0}
    assert steps == [
        losses_asked_for(step_batches(prepared, Position(0, cursor), seed=3, **alone)[0])
        for cursor in (0, 4, 8)
    ]
    assert sum(map(len, steps)) == prepared.num_targets


def test_rows_of_like_length_share_a_micro_batch_and_no_rank_always_has_the_longest(prepared):
    layout = {"micro_batch": 2, "accumulation": 1, "data_parallel": 2}
    longest = []
    for cursor in (0, 4):
        position = Position(0, cursor)
        lengths = sorted(
            prepared.lengths_of(step_rows(position, num_rows=11, global_rows=4, seed=3)), reverse=True
        )
        ranks = [step_batches(prepared, position, seed=3, **layout, dp_rank=rank)[0] for rank in range(2)]
        assert sorted(batch.num_tokens for batch in ranks) == sorted((sum(lengths[:2]), sum(lengths[2:])))
        longest.append(max(range(2), key=lambda rank: ranks[rank].num_tokens))
    assert longest == [0, 1]


@pytest.mark.parametrize(("data_parallel", "micro_batch"), [(1, 1), (2, 2), (4, 3), (3, 8)])
def test_evaluation_sees_each_row_once_in_equally_many_batches_on_each_rank(
    prepared, data_parallel, micro_batch
):
    ranks = [
        list(evaluation_batches(prepared, micro_batch=micro_batch, data_parallel=data_parallel, dp_rank=rank))
        for rank in range(data_parallel)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sum(batch.num_targets for batches in ranks for batch in batches) == prepared.num_targets
    assert sum(batch.num_tokens for batches in ranks for batch in batches) == prepared.num_tokens


def test_evaluation_may_be_limited_to_the_first_rows(prepared):
    first = evaluation_batches(prepared, micro_batch=2, data_parallel=1, dp_rank=0, max_rows=3)
    tokens = {int(token) for batch in first for token in batch.input_ids.unique()} - {0}
    assert tokens == {10, 11, 12}


@pytest.mark.parametrize("data_parallel", [1, 2])
def test_evaluation_puts_rows_of_like_length_together(prepared, data_parallel):
    for rank in range(data_parallel):
        widths = [
            batch.num_tokens
            for batch in evaluation_batches(
                prepared, micro_batch=1, data_parallel=data_parallel, dp_rank=rank
            )
        ]
        assert widths == sorted(widths, reverse=True)
