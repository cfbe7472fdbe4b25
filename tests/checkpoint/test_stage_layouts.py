"""A checkpoint of any ZeRO stage goes on under any other, on any layout; its export is the trained model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from layout_cases import Trace, go_on_from, save_and_go_on
from safetensors.torch import load_file
from test_layouts import whole_tensors
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.checkpoint.export import export_checkpoint

pytestmark = pytest.mark.world

MODEL = "gpt2-5-heads"  # uneven heads in a fused weight, transposes, replicated norms and biases
PLACES = [(2, 2, 0), (2, 2, 1), (4, 1, 1), (2, 2, 2), (1, 2, 2), (2, 2, 3)]
"""(dp, tp, stage)"""
PAIRS = [(before, after) for before in PLACES for after in PLACES]
NAMES = [" to ".join(f"{dp}x{tp} stage {stage}" for dp, tp, stage in pair) for pair in PAIRS]


class Results:
    """All pairs of places, run once."""

    def __init__(self, worlds: Worlds, folder: str, root: Path) -> None:
        folders = {MODEL: folder}
        self.saved: dict[Any, str] = {}
        self.uninterrupted: dict[Any, Trace] = {}
        self.resumed: dict[Any, tuple[str, Trace]] = {}
        self.read: dict[Any, list[int]] = {}
        for place in PLACES:
            dp, tp, stage = place
            target = str(root / f"saved-{place}")
            found = worlds.run(dp * tp, save_and_go_on, folders, tp, target, stage)[0]
            self.saved[place], self.uninterrupted[place] = found[MODEL]
        for after in PLACES:
            dp, tp, stage = after
            target = str(root / f"resumed-{after}")
            sources = {MODEL: self.saved}
            ranks = worlds.run(dp * tp, go_on_from, folders, tp, sources, target, 1, stage)
            for (_, before), (path, trace, _) in ranks[0].items():
                self.resumed[before, after] = (path, trace)
                self.read[before, after] = [rank[MODEL, before][2] for rank in ranks]


@pytest.fixture(scope="module")
def results(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(worlds, str(write_tiny_model(MODEL, session_folder)), tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=NAMES)
def test_weights_and_moments_are_moved_exactly(results: Results, before: Any, after: Any) -> None:
    expected = whole_tensors(Path(results.saved[before]))
    found = whole_tensors(Path(results.resumed[before, after][0]))

    assert sorted({key.partition("/")[0] for key in expected}) == ["exp_avg", "exp_avg_sq", "weight"]
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert not any(torch.isnan(value).any() for value in expected.values())


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=NAMES)
def test_the_steps_after_are_those_of_the_run_that_was_never_stopped(
    results: Results, before: Any, after: Any
) -> None:
    losses, norms = results.resumed[before, after][1]
    expected_losses, expected_norms = results.uninterrupted[before]

    is_exact = before == after
    assert losses == pytest.approx(expected_losses, rel=0 if is_exact else 1e-6, abs=0)
    assert norms == pytest.approx(expected_norms, rel=0 if is_exact else 1e-5, abs=0)


@pytest.mark.parametrize("after", PLACES)
def test_a_rank_reads_what_it_holds_and_no_byte_more(results: Results, after: Any) -> None:
    dp, _, stage = after
    whole = sum(value.nbytes for value in whole_tensors(Path(results.saved[after])).values())
    bytes_read = results.read[(2, 2, 3), after]

    # Replicated weights are read by every tensor-parallel rank: hence not exactly one whole.
    copies = dp if stage == 0 else 1
    assert copies * whole <= sum(bytes_read) < copies * whole * 1.2
    if stage in (1, 2) and dp > 1:
        assert max(bytes_read) < 0.6 * whole, "no data-parallel rank reads what another holds"


@pytest.mark.parametrize("place", PLACES)
def test_an_export_holds_the_masters(results: Results, tmp_path: Path, place: Any) -> None:
    checkpoint = Path(results.saved[place])
    export_checkpoint(checkpoint, tmp_path / "out", dtype=torch.float32)

    exported = load_file(tmp_path / "out" / "model.safetensors")
    whole = whole_tensors(checkpoint)
    for name, weight in exported.items():
        flat = whole[f"weight/{name}"]
        is_turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        expected = flat.view(weight.shape[::-1]).t() if is_turned else flat.view(weight.shape)
        assert torch.equal(weight, expected), name
