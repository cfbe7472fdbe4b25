"""A run of 20 steps stopped after every single one of them is the run that was never stopped, bit for bit.

One chain of starts a case: each start takes a step, saves and ends; the next goes on. A difference at any of the
stops would stay in all that follows.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import ACCUMULATING, LOADING, train_stopped
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]

STEPS, GLOBAL_ROWS = 20, 4
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
LAYOUTS = {1: (1, 1), 2: (2, 1), 4: (2, 2)}
STEP_FIELDS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "target_tokens", "tokens", "skipped")
# Four ranks in bf16 alone, whose masters and moments are those of fp32: a chain of their starts is the dearest.
CASES = [
    (1, "fp32", LOADING, 0),
    (2, "fp32", LOADING, 0),
    (2, "bf16", LOADING, 0),
    (4, "bf16", LOADING, 0),
    (2, "fp32", ACCUMULATING, 0),
    (2, "fp32", LOADING, 2),
]
Chain = tuple[Path, Path, list[int]]


class Chains:
    """The uninterrupted run and the chain of one case, run when first asked for."""

    def __init__(self, worlds: Worlds, model: Path, root: Path) -> None:
        self._worlds, self._model, self._root = worlds, model, root
        self._found: dict[Any, Chain] = {}

    def __call__(self, ranks: int, precision: str, moment: str, workers: int) -> Chain:
        key = (ranks, precision, moment, workers)
        if key not in self._found:
            self._found[key] = self._run(*key)
        return self._found[key]

    def _run(self, ranks: int, precision: str, moment: str, workers: int) -> Chain:
        data_parallel, tensor_parallel = LAYOUTS[ranks]
        folder = self._root / f"{ranks}-{precision}-{moment}-{workers}"
        folder.mkdir()
        run_file = write_run(
            folder / "run.yaml",
            self._model,
            data={"validation": None, "loader_workers": workers},
            train={
                "max_steps": STEPS,
                "gradient_accumulation_steps": GLOBAL_ROWS // data_parallel,
            },
            parallel={"tp_size": tensor_parallel},
            precision=precision,
            checkpoint={"save_steps": 1, "export_at_end": False},
        )
        codes: list[int] = []
        for name, stop, starts in (("whole", None, 1), ("chain", (ranks - 1, moment), STEPS)):
            (folder / f"{name}-samples").mkdir()
            overrides = [f"train.output_dir={folder / name}"]
            results = self._worlds.run(
                ranks, train_stopped, str(run_file), overrides, str(folder / f"{name}-samples"), stop, starts
            )
            assert all(result == results[0] for result in results)
            codes = results[0]
        return folder / "whole", folder / "chain", codes


@pytest.fixture(scope="module")
def chains(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Chains:
    model = write_model_with_tokenizer(session_folder, **DROPOUT)
    return Chains(worlds, model, tmp_path_factory.mktemp("sweep"))


@pytest.mark.parametrize(("ranks", "precision", "moment", "workers"), CASES)
def test_losses_norms_rates_and_rows_are_equal_whatever_step_it_was_stopped_at(
    chains: Chains, ranks: int, precision: str, moment: str, workers: int
) -> None:
    whole, chain, codes = chains(ranks, precision, moment, workers)

    found, expected = (
        [{name: entry[name] for name in STEP_FIELDS} for entry in metrics_of(run, "step")]
        for run in (chain, whole)
    )
    assert found == expected
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    assert len({entry["epoch"] // 1 for entry in found}) > 1, "the edge of an epoch is among the stops"
    stops = sorted({entry["step"] for entry in metrics_of(chain, "stop")})
    # While the rows are loaded the step still hears the signal; in the middle of it, the save behind it does.
    assert stops == list(range(1, STEPS + 1)), moment
    assert set(codes[:-1]) == {75}
    for rank in range(ranks):
        rows = [(Path(f"{run}-samples") / f"rank-{rank}").read_text() for run in (chain, whole)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(("ranks", "precision", "moment", "workers"), CASES)
def test_weights_moments_and_generators_are_equal_after_every_step(
    chains: Chains, ranks: int, precision: str, moment: str, workers: int
) -> None:
    whole, chain, _ = chains(ranks, precision, moment, workers)

    found, expected = (hashes(run) for run in (chain, whole))

    assert sorted(found) == [f"step-{step:08d}" for step in range(1, STEPS + 1)]
    assert found == expected
    assert len({json.dumps(files) for files in expected.values()}) == STEPS, "every step changes them"


def hashes(run: Path) -> dict[str, dict[str, str]]:
    """Checkpoint -> file -> hash, of everything that ranks keep."""
    return {
        folder.name: {
            name: entry["xxh3_128"]
            for name, entry in json.loads((folder / "manifest.json").read_text())["files"].items()
            if name.startswith(("rank-", "training"))
        }
        for folder in (run / "checkpoints").iterdir()
    }
