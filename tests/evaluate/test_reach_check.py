"""Packed documents must not read each other, nor a token what comes later: kept apart, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from parity_steps import plain_engine, tiny_run
from reach_cases import LENGTHS, Packing, pack_models
from tiny_models import MASKED, TINY, VOCABULARY, perturb, write_tiny_model
from worlds import Worlds

from megatune.errors import ModelError
from megatune.evaluate.reach_check import check_reach, measure_reach

pytestmark = pytest.mark.world

# Their code in transformers builds the attention mask without looking at positions; Falcon's up to 5.23.
GIVEN = {"opt", "gpt_oss", *MASKED}
if Version(transformers.__version__) < Version("5.24"):
    GIVEN |= {"falcon", "falcon-rw"}
# It reads its biases off a mask of two dimensions.
LEAKING = {"bloom"}
DEGREES = [0, 2]
"""0: one plain process; 2: the real engine at tp=2, where each rank sees half of the logits."""
CASES = [
    *((name, tp) for name in TINY for tp in DEGREES),
    *((name, tp) for name in MASKED for tp in (0, 1)),
]


@pytest.fixture(scope="module")
def packings(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int], list[Packing]]:
    """(family, degree) -> what each rank found."""
    folders = {name: str(write_tiny_model(name, session_folder)) for name in (*TINY, *MASKED)}
    found: dict[tuple[str, int], list[Packing]] = {}
    for tp in {tp for _, tp in CASES}:
        names = [name for name, degree in CASES if degree == tp]
        ranks = worlds.run(max(1, tp), pack_models, {name: folders[name] for name in names}, tp)
        found |= {(name, tp): [rank[name] for rank in ranks] for name in names}
    return found


@pytest.mark.parametrize(("family", "tp"), [case for case in CASES if case[0] not in LEAKING])
def test_a_packed_document_has_the_logits_it_has_alone(
    packings: dict[tuple[str, int], list[Packing]], family: str, tp: int
) -> None:
    for packing in packings[family, tp]:
        assert not packing.is_refused, packing.answer
        assert packing.alone < 1e-5
        assert packing.reach_after.next == 0
        assert packing.reach_after.own > 0.1
        is_given = "masks that megatune gives" in packing.answer
        assert is_given == (family in GIVEN), "the lists above are out of date"
        assert packing.reach.is_apart != is_given


@pytest.mark.parametrize(("family", "tp"), CASES)
def test_no_logit_comes_from_a_later_token(
    packings: dict[tuple[str, int], list[Packing]], family: str, tp: int
) -> None:
    for packing in packings[family, tp]:
        assert max(packing.reach.earlier, packing.reach_after.earlier) < 1e-5


@pytest.mark.parametrize(("family", "tp"), [case for case in CASES if case[0] in LEAKING])
def test_a_family_whose_documents_read_each_other_is_refused_with_the_fix(
    packings: dict[tuple[str, int], list[Packing]], family: str, tp: int
) -> None:
    for packing in packings[family, tp]:
        assert packing.alone > 1e-2, "it does not leak any more: take it off the list"
        assert packing.is_refused
        assert "data.packing=false" in packing.answer
        assert "packed documents read each other" in packing.answer


@pytest.mark.parametrize("family", TINY)
def test_all_ranks_decide_alike(packings: dict[tuple[str, int], list[Packing]], family: str) -> None:
    one, other = packings[family, 2]

    assert (one.reach, one.answer, one.reach_after) == (other.reach, other.answer, other.reach_after)


class Rows:
    """Two documents in one row, or in two padded ones: the same targets."""

    def __init__(self, *, packed: bool) -> None:
        first, second = LENGTHS
        ids = torch.randint(0, VOCABULARY, (first + second,), generator=torch.Generator().manual_seed(5))
        ends = torch.tensor([first - 1, first + second - 1])
        labels = ids.roll(-1)
        labels[ends] = -100
        positions = torch.cat([torch.arange(first), torch.arange(second)])
        columns = (ids, positions, labels)
        if not packed:
            columns = tuple(
                torch.stack(
                    [torch.cat([column[:first], column.new_full((second - first,), fill)]), column[first:]]
                )
                for column, fill in zip(columns, (0, 0, -100), strict=True)
            )
        self.input_ids, self.position_ids, self.labels = (
            column.reshape(-1, column.shape[-1]) for column in columns
        )


@pytest.mark.parametrize("family", sorted(GIVEN))
def test_given_masks_have_the_gradients_of_documents_in_rows_of_their_own(
    session_folder: Path, family: str
) -> None:
    folder = str(write_tiny_model(family, session_folder))
    trained: dict[bool, dict[str, torch.Tensor]] = {}
    for packed in (True, False):
        engine: Any = plain_engine(tiny_run(folder))
        check_reach(engine, packed=packed)
        assert engine.built.masks.are_given == packed
        engine.backward(engine.loss(Rows(packed=packed)) / sum(LENGTHS), is_last=True)
        engine.step(0.1)
        trained[packed] = dict(engine.weights(master=True))

    assert all(torch.allclose(trained[True][name], trained[False][name], atol=1e-6) for name in trained[True])


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "bert",
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    model = AutoModelForCausalLM.from_config(config)
    perturb(model)  # what it draws is small, and so is what a token then sees of the others
    model.save_pretrained(tmp_path)
    engine = plain_engine(tiny_run(str(tmp_path)))

    for packed in (True, False):
        with pytest.raises(
            ModelError, match=r"no causal language model as it is: changing later tokens.*is_decoder"
        ):
            check_reach(engine, packed=packed)


def test_a_model_whose_logits_never_move_is_refused(session_folder: Path) -> None:
    engine = plain_engine(tiny_run(str(write_tiny_model("llama", session_folder))))
    for _, weight in engine.built.model.named_parameters():
        weight.data.fill_(float("nan"))

    assert not measure_reach(engine, packed=False).own > 0
    with pytest.raises(ModelError, match="no logit of this LlamaForCausalLM moves when its tokens change"):
        check_reach(engine, packed=False)
