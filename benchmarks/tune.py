"""A tune beside the exhaustive grid: `python benchmarks/tune.py [--model llama-1m] [--seed 42] [--rounds 3]
[--out FOLDER] [--try KEY=V1,V2]...`.

1. `megatune tune` chooses among the candidates with a quarter of their number as trials, each in processes of its own.
2. Every candidate of the same tune is trained once for as many steps (the grid), in the same two ranks one after
   another (`one_world.py`), because starting processes is most of a short trial.
3. The grid's best two and the tune's choice are trained in turn, round after round, with twice the steps.

The record says how far the tune's choice is from the grid's best, in the grid and in the rounds. Processor time of
the ranks is compared, since others use the machine. The seed decides weights, rows and their order; nothing in a tune
is drawn.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from megatune.bench.inputs import write_inputs
from megatune.bench.record import machine
from megatune.bench.suite import Work
from megatune.files import write_text_atomic
from megatune.launch.environment import source_commit
from megatune.launch.ports import reserve_port
from megatune.report.losses import first_difference
from megatune.tune.layouts.definition import Definition, read_definition
from megatune.tune.layouts.halving import Next
from megatune.tune.layouts.journal import TuneFolder
from megatune.tune.layouts.making import Maker
from megatune.tune.layouts.measure import Measure, read_measure
from megatune.tune.trial import StopSignals

RESULTS = Path(__file__).parent / "results"
KNOBS = (
    "parallel.tp_size=1,2",
    "train.per_device_train_batch_size=1,2,4,8",
    "model.gradient_checkpointing=false,true",
    "parallel.leaf_modules=true,false",
    "model.attn_implementation=auto,eager",
)
FIXED = (
    "parallel.keep_gathered",
    "train.chunked_loss",
    "parallel.offload",
    "parallel.zero_stage",
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
)
SHARE = 4
"""The tune may make the number of candidates over this many trials."""
STEPS, WARMUP = 8, 2
OWN = "train.per_device_train_batch_size=1"
"""The run's own layout is a poor one, so that keeping it is no success."""
RANKS = 2
SEED = 42


def main() -> None:
    """Tune, measure the grid, measure the best in turn, and write the record."""
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="megatune-tune-") as scratch:
        work = Work(model=asked.model, max_seq_length=128, micro_batch=4, ranks=RANKS, precision="bf16",
                    warmup_steps=WARMUP, steps=4 * STEPS)  # fmt: skip
        run_file = write_inputs(work, Path(scratch)).run_file
        found = tune(run_file, asked, trials=1000, dry_run=True)
        num_candidates = len(found["candidates"])
        answer = tune(run_file, asked, trials=max(2, num_candidates // SHARE))
        folder = TuneFolder(Path(answer["folder"]))
        definition = read_definition(folder)
        assert definition is not None, "the tune has just written it"
        grid = measure_grid(folder, definition)
        record = {**head(asked), "tune": answer, **compare(folder, definition, grid, answer, asked.rounds)}
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"tune-{asked.model}{'' if asked.seed == SEED else f'-seed-{asked.seed}'}.json"
    write_text_atomic(path, json.dumps(record) + "\n")
    print(json.dumps(record["verdict"], indent=1))
    print(f"record: {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A tune beside the exhaustive grid.")
    parser.add_argument("--model", default="llama-1m", help="a folder of benchmarks/models")
    parser.add_argument("--seed", type=int, default=SEED, help="of the run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the last comparison")
    parser.add_argument(
        "--try",
        dest="knobs",
        metavar="KEY=V1,V2",
        action="append",
        help="a knob of the grid, in place of all",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the record goes")
    asked = parser.parse_args()
    asked.knobs = asked.knobs or list(KNOBS)
    return asked


def head(asked: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": source_commit(),
        "model": asked.model,
        "seed": asked.seed,
        "knobs": asked.knobs,
    }


def tune(run_file: Path, asked: argparse.Namespace, *, trials: int, dry_run: bool = False) -> dict[str, Any]:
    """The answer of `megatune tune` over the knobs; the others stay as they are."""
    tried = {knob.partition("=")[0] for knob in asked.knobs}
    kept = [key for key in (*FIXED, *(knob.partition("=")[0] for knob in KNOBS)) if key not in tried]
    options = [word for knob in asked.knobs for word in ("--try", knob)]
    options += [word for key in kept for word in ("--fix", key)]
    options += ["--trials", str(trials), "--steps", str(STEPS), "--warmup", str(WARMUP), "--clock", "cpu"]
    command = [sys.executable, "-m", "megatune", "tune", str(run_file), OWN, f"train.seed={asked.seed}"]
    command += [*options, "--json"]
    command += ["--dry-run"] * dry_run
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict), "--json prints one object"
    return answer


def measure_grid(folder: TuneFolder, definition: Definition) -> dict[int, Measure]:
    """One training of every candidate."""
    numbers = [candidate.number for candidate in definition.space.candidates]
    measures = train_in_one_world(folder, definition, numbers, STEPS, name="grid")
    return dict(zip(numbers, measures, strict=True))


def compare(
    folder: TuneFolder, definition: Definition, grid: dict[int, Measure], answer: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """How far the tune's choice is from the best of the grid, in the grid and in rounds."""
    candidates = definition.space.candidates
    good = {
        number: measure.token_s("cpu", candidates[number].devices)
        for number, measure in grid.items()
        if first_difference(grid[0].losses, measure.losses, "bf16") is None
    }
    ranked = sorted(good, key=lambda number: good[number])
    chosen = answer["best"]["candidate"]
    finalists = list(dict.fromkeys([*ranked[:2], chosen]))
    order = finalists * rounds
    measures = train_in_one_world(folder, definition, order, 2 * STEPS, name="rounds")
    in_turn: dict[int, list[float]] = {number: [] for number in finalists}
    for number, measure in zip(order, measures, strict=True):
        in_turn[number].append(measure.token_s("cpu", candidates[number].devices))
    medians = {number: median(values) for number, values in in_turn.items()}
    return {
        "verdict": {
            "candidates": len(candidates),
            "trials_of_the_tune": len(answer["trials"]),
            "chosen": chosen,
            "best_of_grid": ranked[0],
            "rank_in_grid": ranked.index(chosen) + 1 if chosen in ranked else None,
            "slower_than_best_in_grid": good[chosen] / good[ranked[0]] - 1 if chosen in good else None,
            "slower_than_best_in_rounds": medians[chosen] / min(medians.values()) - 1,
            "spread_of_rounds": {n: (max(v) - min(v)) / medians[n] for n, v in in_turn.items()},
        },
        "candidates": [one.as_object() for one in candidates],
        "grid": {number: measure.as_object() for number, measure in grid.items()},
        "rounds_cpu_seconds_per_token": in_turn,
    }


def train_in_one_world(
    folder: TuneFolder, definition: Definition, numbers: list[int], steps: int, *, name: str
) -> list[Measure]:
    """What the trainings of these candidates measured, with the arguments of a tune's trials."""
    beside = TuneFolder(folder.path / name)
    beside.create()
    beside.run_file.write_bytes(folder.run_file.read_bytes())
    runs = [beside.trial(place) for place in range(len(numbers))]
    with StopSignals() as stop:
        maker = Maker(beside, definition, stop)
    jobs = [
        maker.arguments(Next(candidate=number, rung=0, steps=steps, why=""), run)
        for number, run in zip(numbers, runs, strict=True)
    ]
    file = beside.path / "jobs.json"
    file.write_text(json.dumps(jobs))
    with reserve_port() as port:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}"]
        script = str(Path(__file__).with_name("one_world.py"))
        subprocess.run([*torchrun, f"--master_port={port}", script, str(file)], stdout=sys.stderr, check=True)
    found = [read_measure(run.metrics, warmup_steps=WARMUP) for run in runs]
    assert None not in found, "every training took all its steps"
    return [measure for measure in found if measure is not None]


if __name__ == "__main__":
    main()
