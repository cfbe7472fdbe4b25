"""One run over many layouts, each going on from what another has saved, is the run that stayed on one."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from chain_cases import train_noting_rows
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

pytestmark = pytest.mark.world

# (dp, tp, micro-batch): 4 rows a step on all of them, with other worlds and other accumulations.
LAYOUTS = [(2, 1, 1), (1, 2, 1), (4, 1, 1), (2, 2, 2), (1, 1, 2), (1, 4, 4), (2, 1, 2)]
STEPS_EACH, GLOBAL_ROWS = 2, 4


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("chain") / "run.yaml",
        write_model_with_tokenizer(session_folder, "llama"),
        data={"validation": None},
        train={
            "max_steps": len(LAYOUTS) * STEPS_EACH,
            "gradient_accumulation_steps": None,
            "global_batch_size": GLOBAL_ROWS,
        },
        checkpoint={"export_at_end": False},
    )


def start(
    worlds: Worlds, run_file: Path, folder: Path, layout: tuple[int, int, int], stop_in: int | None
) -> int:
    data_parallel, tensor_parallel, micro = layout
    overrides = [
        f"train.output_dir={folder / 'run'}",
        f"parallel.tp_size={tensor_parallel}",
        f"train.per_device_train_batch_size={micro}",
    ]
    rows = folder / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    num_ranks = data_parallel * tensor_parallel
    (code,) = set(worlds.run(num_ranks, train_noting_rows, str(run_file), overrides, str(rows), stop_in))
    return int(code)


def rows_by_step(folder: Path) -> list[tuple[list[int], list[str]]]:
    """The place in the data and all rows of each step, over all ranks."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path in (folder / "rows").iterdir():
        for line in map(json.loads, path.read_text().splitlines()):
            found[tuple(line["at"])] += line["rows"]
    return [(list(at), sorted(rows)) for at, rows in sorted(found.items())]


def test_rows_and_losses_are_those_of_the_run_that_stayed_on_one_layout(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    whole, chain = tmp_path / "whole", tmp_path / "chain"
    assert start(worlds, run_file, whole, (1, 1, 4), None) == 0

    codes = [start(worlds, run_file, chain, layout, STEPS_EACH) for layout in LAYOUTS]

    assert codes == [75] * (len(LAYOUTS) - 1) + [75]
    assert rows_by_step(chain) == rows_by_step(whole)
    found, expected = metrics_of(chain / "run", "step"), metrics_of(whole / "run", "step")
    assert [entry["step"] for entry in found] == list(range(1, len(LAYOUTS) * STEPS_EACH + 1))
    for key, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5), ("learning_rate", 0.0), ("epoch", 0.0)):
        assert [e[key] for e in found] == pytest.approx([e[key] for e in expected], rel=tolerance, abs=0)
    layouts = [entry["layout"] for entry in metrics_of(chain / "run", "resume")]
    assert layouts == [f"dp={dp} x tp={tp}" for dp, tp, _ in LAYOUTS[1:]]
