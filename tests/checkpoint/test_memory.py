"""A rank that goes on from another layout holds its own part and nothing of the others'."""

from pathlib import Path

import pytest
import torch
from written_checkpoints import KINDS, piece, write_checkpoint

from megatune.checkpoint.layout import Layout
from megatune.checkpoint.manifest import read_manifest
from megatune.checkpoint.saved_state import SavedPieces
from megatune.checkpoint.weights_index import WeightEntry
from megatune.plan.shards import Cut, Segment

LARGE = {
    "row": WeightEntry(shape=(1024, 4096), cut=Cut(dim=1, segments=(Segment(16, 256),)), transposed=False),
    "fused": WeightEntry(
        shape=(4096, 1024), cut=Cut(dim=0, segments=(Segment(8, 256),) * 2), transposed=False
    ),
}
STATE_BYTES = 3 * 4 * 2 * 2**22


def resident_bytes(line: str) -> int:
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(line):
            return int(text.split()[1]) * 1024
    pytest.skip(f"this system does not tell {line}")


@pytest.mark.parametrize("after", [(2, 2), (4, 1), (1, 4)])
def test_reading_needs_no_memory_beyond_the_ranks_own_part(tmp_path: Path, after: tuple[int, int]) -> None:
    saved = write_checkpoint(tmp_path, 1, layout=Layout(data_parallel=1, tensor_parallel=2), weights=LARGE)
    layout = Layout(data_parallel=after[0], tensor_parallel=after[1])
    state = SavedPieces(
        folder=saved,
        saved_layout=read_manifest(saved).layout,
        saved_weights=LARGE,
        layout=layout,
        weights=LARGE,
        rank=1,
    )
    parts = {(kind, name): torch.ones(state.num_elements(name)) for kind in KINDS for name in LARGE}
    own_bytes = sum(part.nbytes for part in parts.values())
    assert own_bytes == STATE_BYTES // 4
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident_bytes("VmRSS")

    for (kind, name), part in parts.items():
        state.read_into(kind, name, part)

    assert resident_bytes("VmHWM") - before < STATE_BYTES // 20
    assert state.bytes_read == own_bytes
    for (kind, name), part in parts.items():
        assert torch.equal(part, piece(kind, name, LARGE, layout, 1))
