"""Packed documents must not read each other: allowed where that holds, refused where it does not."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from packing_cases import Packing, pack_models
from tiny_models import TINY, write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

# Their code in transformers builds the attention mask without looking at positions; Falcon's up to 5.23.
LEAKING = {"opt", "bloom"}
if Version(transformers.__version__) < Version("5.24"):
    LEAKING |= {"falcon", "falcon-rw"}
DEGREES = [0, 2]
"""0: one plain process; 2: the real engine at tp=2, where each rank sees half of the logits."""


@pytest.fixture(scope="module")
def packings(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int], list[Packing]]:
    """(family, degree) -> what each rank found."""
    folders = {name: str(write_tiny_model(name, session_folder)) for name in TINY}
    found: dict[tuple[str, int], list[Packing]] = {}
    for tp in DEGREES:
        ranks = worlds.run(max(1, tp), pack_models, folders, tp)
        found |= {(name, tp): [rank[name] for rank in ranks] for name in TINY}
    return found


@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize("family", [name for name in TINY if name not in LEAKING])
def test_a_packed_document_has_the_logits_it_has_alone(
    packings: dict[tuple[str, int], list[Packing]], family: str, tp: int
) -> None:
    for packing in packings[family, tp]:
        assert packing.refusal is None
        assert packing.alone < 1e-5
        assert packing.other == 0
        assert packing.own > 0.1


@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize("family", sorted(LEAKING))
def test_a_family_whose_documents_read_each_other_is_refused_with_the_fix(
    packings: dict[tuple[str, int], list[Packing]], family: str, tp: int
) -> None:
    for packing in packings[family, tp]:
        assert packing.alone > 1e-2, "it does not leak any more: take it off the list"
        assert packing.refusal is not None
        assert "data.packing=false" in packing.refusal
        assert "packed documents read each other" in packing.refusal


@pytest.mark.parametrize("family", TINY)
def test_all_ranks_decide_alike(packings: dict[tuple[str, int], list[Packing]], family: str) -> None:
    one, other = packings[family, 2]

    assert (one.own, one.other, one.refusal) == (other.own, other.other, other.refusal)
