"""Whatever signal comes, when, to whom and how often: one agreed step, one whole checkpoint of it, exit code 75.

The checkpoint is compared with the one that an undisturbed run has of that step, bit by bit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from signal_cases import train_with_signals
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_run
from worlds import Worlds

pytestmark = [pytest.mark.world, pytest.mark.timeout(600)]
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
ALL, STEPS, ACCUMULATION = (0, 1), 7, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """Signals to `ranks` in a call of the moment; what is saved then, the last one being of the agreed step."""

    moment: str
    call: int
    ranks: tuple[int, ...]
    signals: list[str]
    saved: list[int]
    is_async: bool = True

    def __str__(self) -> str:
        who = "all" if self.ranks == ALL else f"rank {self.ranks[0]}"
        how = "async" if self.is_async else "sync"
        return f"{self.moment} {self.call}, {'+'.join(self.signals)} to {who}, {how}"


# Saves are at steps 2, 4 and 6, an evaluation at 0 and 3; a step has two calls of backward.
CASES = [
    Case(moment="meeting", call=1, ranks=(1,), signals=["SIGTERM"], saved=[]),
    Case(moment="meeting", call=1, ranks=ALL, signals=["SIGINT", "SIGINT"], saved=[]),
    Case(moment="loading", call=1, ranks=(0,), signals=["SIGUSR1"], saved=[]),
    Case(moment="loading", call=1, ranks=ALL, signals=["SIGUSR2", "SIGTERM"], saved=[]),
    Case(moment="evaluation", call=1, ranks=(1,), signals=["SIGINT"], saved=[1]),
    Case(moment="rows of the step", call=1, ranks=(1,), signals=["SIGUSR1"], saved=[1]),
    Case(moment="backward of the step", call=1, ranks=(0,), signals=["SIGINT"], saved=[2]),
    Case(moment="update of the step", call=1, ranks=ALL, signals=["SIGTERM", "SIGTERM"], saved=[2]),
    Case(moment="backward of the step", call=6, ranks=(1,), signals=["SIGUSR2", "SIGUSR2"], saved=[2, 3]),
    Case(moment="evaluation", call=2, ranks=(0,), signals=["SIGTERM"], saved=[2, 4]),
    Case(moment="evaluation", call=2, ranks=ALL, signals=["SIGUSR1", "SIGINT"], saved=[2, 4]),
    Case(moment="writing", call=2, ranks=(1,), signals=["SIGINT"], saved=[2, 4], is_async=False),
    Case(moment="writing", call=2, ranks=ALL, signals=["SIGUSR2"], saved=[2, 4], is_async=False),
    Case(moment="commit", call=2, ranks=(0,), signals=["SIGTERM", "SIGTERM"], saved=[2, 4], is_async=False),
    Case(moment="writing", call=2, ranks=(0,), signals=["SIGUSR1"], saved=[2, 4, 5]),
    Case(moment="writing", call=2, ranks=ALL, signals=["SIGTERM", "SIGINT"], saved=[2, 4, 5]),
    Case(moment="commit", call=2, ranks=(0,), signals=["SIGUSR2"], saved=[2, 4, 5]),
]


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("signals") / "run.yaml",
        write_model_with_tokenizer(session_folder, **DROPOUT),
        train={"max_steps": STEPS, "gradient_accumulation_steps": ACCUMULATION},
        evaluate={"eval_steps": 3},
        parallel={"tp_size": 1},
        checkpoint={"save_steps": 2, "export_at_end": False},
    )


@pytest.fixture(scope="module")
def undisturbed(worlds: Worlds, run_file: Path) -> Path:
    overrides = [f"train.output_dir={run_file.parent / 'whole'}", "checkpoint.save_steps=1"]
    assert worlds.run(2, train, str(run_file), overrides) == [0, 0]
    return run_file.parent / "whole"


def bits(run: Path, step: int) -> dict[str, str]:
    """Hashes of all that ranks keep at a step, and the place in the data."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    state = json.loads((folder / "training.json").read_text())["state"]
    held = {name: entry["xxh3_128"] for name, entry in files.items() if name.startswith("rank-")}
    return held | {"position": state["position"], "tokens": state["tokens"]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_stop_after_the_same_step_with_one_whole_checkpoint(
    worlds: Worlds, run_file: Path, undisturbed: Path, tmp_path: Path, case: Case
) -> None:
    run = tmp_path / "run"
    overrides = [f"train.output_dir={run}", f"checkpoint.async={json.dumps(case.is_async)}"]

    codes = worlds.run(
        2, train_with_signals, str(run_file), overrides, case.moment, case.call, case.ranks, case.signals
    )

    assert codes == [75, 75]
    found = sorted(path.name for path in (run / "checkpoints").iterdir()) if case.saved else []
    ends = [case.saved[-1]] if case.saved else []
    if case.is_async and case.moment in ("writing", "commit"):
        # How soon a step is over that runs beside the disk is chance.
        ends = [int(found[-1].removeprefix("step-"))]
        assert ends[0] in (4, 5, 6)
    wanted = [f"step-{step:08d}" for step in sorted({*[s for s in case.saved if s in (2, 4)], *ends})]
    assert found == wanted, "nothing else, and nothing unfinished"
    for step in ends:
        assert bits(run, step) == bits(undisturbed, step)
        (stop,) = metrics_of(run, "stop")
        assert (stop["step"], stop["exit_code"]) == (step, 75)
        assert stop["reason"].startswith("asked to stop by")


def test_a_signal_while_a_run_is_resumed_costs_nothing(
    worlds: Worlds, run_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = [f"train.output_dir={run}"]
    moments = [("rows of the step", 3), ("loading", 1), ("meeting", 1)]
    for moment, call in moments:
        codes = worlds.run(2, train_with_signals, str(run_file), given, moment, call, (1,), ["SIGTERM"])
        assert codes == [75, 75]
        assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
            "step-00000002",
            "step-00000003",
        ]

    assert worlds.run(2, train, str(run_file), given) == [0, 0]

    assert bits(run, STEPS) == bits(undisturbed, STEPS)
