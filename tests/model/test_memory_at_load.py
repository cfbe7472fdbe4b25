"""A rank reads its share of the weights, not the model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from load_cases import build_watched, load_plainly_watched
from tiny_models import write_tiny_model
from worlds import TestWorld

pytestmark = pytest.mark.world

# Shares of the model's fp32 bytes at dp=2 x tp=2: precision -> (what a rank's partition is, the allowed peak).
# On top of the partition comes what is in the works: a block, or at the end this rank's half of the vocabulary
# (45 % of this model's parameters sit in embedding and head) as it was and as a copy in the precision asked for.
# Measured peaks: 0.21 to 0.30 in bf16, 0.41 to 0.50 in fp32. After a plain `from_pretrained` every rank holds all
# weights: 0.5 in bf16; in fp32 mapped files cost nothing until ZeRO's broadcast writes into them (0.68 was measured).
SHARES = {"bf16": (1 / 8, 0.35), "fp32": (1 / 4, 0.6)}


@pytest.fixture
def fresh_world() -> Iterator[TestWorld]:
    """Four new ranks: used ones would build in memory that earlier tests have left them."""
    world = TestWorld(4)
    yield world
    world.close()


@pytest.fixture(scope="module")
def wide_model(session_folder: Path) -> Path:
    """45.7 M parameters, 183 MB in fp32."""
    return write_tiny_model(
        "llama",
        session_folder,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1536,
        vocab_size=20000,
    )


@pytest.mark.parametrize("precision", SHARES)
def test_no_rank_holds_the_model_while_it_loads(
    fresh_world: TestWorld, session_folder: Path, wide_model: Path, precision: str
) -> None:
    tiny = str(write_tiny_model("llama", session_folder))
    model_bytes = sum(path.stat().st_size for path in wide_model.glob("*.safetensors"))
    partition, largest_peak = SHARES[precision]

    ranks = fresh_world.run(build_watched, tiny, str(wide_model), precision)

    assert model_bytes == pytest.approx(4 * ranks[0]["num_params"], rel=0.01), "the files are fp32"
    for rank in ranks:
        assert rank["peak"] < largest_peak * model_bytes
        assert rank["peak"] > 0.9 * partition * model_bytes, "a rank's partition must have been seen"


def test_a_plain_load_would_be_seen_by_this_measure(fresh_world: TestWorld, wide_model: Path) -> None:
    model_bytes = sum(path.stat().st_size for path in wide_model.glob("*.safetensors"))

    ranks = fresh_world.run(load_plainly_watched, str(wide_model))

    assert min(rank["peak"] for rank in ranks) > SHARES["bf16"][1] * model_bytes
