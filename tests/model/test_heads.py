"""Classifier heads train at every layout like one process, with the losses that transformers gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from head_cases import HEADS, head_traces, losses_of_transformers
from tiny_models import write_tiny_model, write_tiny_model_with_images
from transformers import AutoConfig
from worlds import Worlds

from megatune.model.build import build_model
from megatune.model.heads import balanced_positives, balanced_weights, best_spans, head_loss_sum
from megatune.model.source import open_source

KINDS = {
    "gpt2": list(HEADS),
    "llama": ["classification", "ner", "qa"],
    "llama-tied-9-heads": ["weighted"],
    "gpt_neox": ["ner"],
}


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for tp, ranks in ((0, 1), (1, 2), (2, 2), (2, 4)):
        for name in KINDS:
            folders = {name: str(write_tiny_model(name, session_folder))}
            ran = worlds.run(ranks, head_traces, folders, KINDS[name], tp)[0]
            found |= {(*key, tp, ranks): value for key, value in ran.items()}
    return found


@pytest.mark.world
@pytest.mark.parametrize(("tp", "ranks"), [(1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in KINDS for kind in KINDS[name]])
def test_a_head_trains_at_every_layout_like_in_one_process(
    traces: dict[Any, Any], name: str, kind: str, tp: int, ranks: int
) -> None:
    losses, norms, weights = traces[name, kind, tp, ranks]
    expected_losses, expected_norms, expected_weights = traces[name, kind, 0, 1]

    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for key, expected in expected_weights.items():
        assert abs(weights[key] - expected).max() < 1e-5, key


@pytest.mark.world
@pytest.mark.parametrize("kind", ["classification", "multi-label", "ner"])
def test_the_loss_is_that_of_the_transformers_class(worlds: Worlds, session_folder: Path, kind: str) -> None:
    ours, theirs = worlds.run(
        1, losses_of_transformers, str(write_tiny_model("llama", session_folder)), kind
    )[0]

    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_padding_is_told_where_transformers_looks_for_it(session_folder: Path, tmp_path: Path) -> None:
    """A class is read at the last token that is no padding: in the language model's part of the configuration."""
    folder = write_tiny_model_with_images(session_folder)
    source = replace(open_source(folder), head=replace(HEADS["classification"], pad_id=7))

    assert build_model(source, dtype=torch.float32).model.config.get_text_config().pad_token_id == 7
    source.copy_without_weights(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).get_text_config().pad_token_id == 7


def test_the_best_span_lies_among_the_candidates_and_is_not_too_long() -> None:
    logits = torch.zeros(1, 6, 2)
    logits[0, 0], logits[0, 5] = 9.0, 9.0  # the best scores of all, and no candidates
    logits[0, 1, 0], logits[0, 4, 1], logits[0, 3, 1], logits[0, 2, 0] = 3.0, 3.0, 2.0, 2.5
    candidates = torch.tensor([[False, True, True, True, True, False]])

    assert best_spans(logits, candidates, longest=4) == [(1, 4)]
    assert best_spans(logits, candidates, longest=3) == [(2, 4)]


def test_balanced_weights_share_the_loss_out_evenly() -> None:
    weights = balanced_weights([90, 10, 0])

    assert weights[0] * 90 == pytest.approx(weights[1] * 10)
    assert (weights[0] * 90 + weights[1] * 10) / 100 == pytest.approx(1)


def test_weights_of_several_labels_are_those_of_torch() -> None:
    spec = HEADS["multi-label, weighted"]
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 5, 7, -100])  # bits; the last row only fills up
    wanted = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.float32)

    ours = head_loss_sum(logits, rows[:, None], spec)

    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(spec.class_weights))(logits[:3], wanted)
    assert float(ours) == pytest.approx(float(theirs) * 3)


def test_balanced_positives_weigh_as_much_as_the_rows_without_the_label() -> None:
    assert balanced_positives([1, 2, 4, 0], 4) == (3.0, 1.0, 1.0, 1.0)
