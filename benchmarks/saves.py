"""What saving costs: `python benchmarks/saves.py SHAPE [RANKS] [SAVES]`.

SHAPE is a folder of benchmarks/models. megatune trains it on RANKS processes and saves SAVES times, once while
training waits for each checkpoint and once behind training; the first save of each run, which gets its memory, is
told apart. A bare DeepSpeed engine saves the same model with `save_checkpoint`. Then the run is resumed and exported.
One JSON line each: seconds that training was blocked, seconds until the checkpoint was safe, step times with and
without a save in flight.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bare_deepspeed import trained_for_a_step

from megatune.bench.inputs import write_inputs
from megatune.bench.suite import Work
from megatune.report.metrics import read_metrics

STEPS_BETWEEN, WARMUP = 4, 2
BARE = "deepspeed"  # as the first argument: what the ranks of torchrun run


def train(run_file: Path, output_dir: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run `megatune train`; the lines of its metrics."""
    command = [sys.executable, "-m", "megatune", "train", str(run_file), f"train.output_dir={output_dir}"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return read_metrics(output_dir / "metrics.jsonl")


def figures(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one run: what its saves took, and its steps beside them."""
    saves = [entry for entry in entries if entry["event"] == "save"]
    beside, alone = steps_by_flight(entries)
    return {
        "case": name,
        "num_bytes": saves[0]["num_bytes"],
        "first_blocked_s": saves[0]["blocked_seconds"],
        "blocked_median_s": statistics.median(save["blocked_seconds"] for save in saves[1:]),
        "blocked_range_s": spread([save["blocked_seconds"] for save in saves[1:]]),
        "written_median_s": statistics.median(save["seconds"] for save in saves[1:]),
        "written_range_s": spread([save["seconds"] for save in saves[1:]]),
        "step_median_s": statistics.median(alone) if alone else None,
        "step_beside_save_median_s": statistics.median(beside) if beside else None,
        "num_steps": [len(alone), len(beside)],
    }


def steps_by_flight(entries: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Seconds of the steps with a save in flight, and of those without. A save's line is written when it ends."""
    ended_after: dict[int, int] = {}
    last = 0
    for entry in entries:
        if entry["event"] == "step":
            last = entry["step"]
        elif entry["event"] == "save":
            ended_after[entry["step"]] = last
    flights = {step for begun, ended in ended_after.items() for step in range(begun + 1, ended + 1)}
    steps = [entry for entry in entries if entry["event"] == "step" and entry["step"] > WARMUP]
    beside = [entry["step_seconds"] for entry in steps if entry["step"] in flights]
    return beside, [entry["step_seconds"] for entry in steps if entry["step"] not in flights]


def spread(values: list[float]) -> list[float]:
    return [round(pick(values), 4) for pick in (min, max)]


def save_with_deepspeed(model_folder: str, target: str, saves: str) -> None:
    """What each rank of torchrun does: one step, then saves, one after the other."""
    import torch.distributed as dist

    with trained_for_a_step(model_folder) as engine:
        taken = []
        for number in range(int(saves)):
            dist.barrier()
            started = time.perf_counter()
            engine.save_checkpoint(target, tag=f"step-{number}")
            taken.append(time.perf_counter() - started)
        if dist.get_rank() == 0:
            (Path(target) / "seconds.json").write_text(json.dumps(taken))


def bare_deepspeed(model: Path, target: Path, ranks: int, saves: int) -> dict[str, Any]:
    """`save_checkpoint` of a bare engine on as many ranks, started by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    asked = [__file__, BARE, str(model), str(target), str(saves)]
    subprocess.run([*torchrun, *asked], check=True, capture_output=True)
    taken = json.loads((target / "seconds.json").read_text())
    return {
        "case": "DeepSpeed save_checkpoint (no sync, no hash)",
        "blocked_median_s": statistics.median(taken[1:]),
        "blocked_range_s": spread(taken[1:]),
    }


def ratios(waits: dict[str, Any], behind: dict[str, Any]) -> dict[str, Any]:
    """What saving behind training takes beside waiting for it, and how busy the machine was."""
    beside, alone = behind["step_beside_save_median_s"], behind["step_median_s"]
    return {
        "blocked_behind_to_waiting": behind["blocked_median_s"] / waits["blocked_median_s"],
        "step_beside_save_to_alone": beside / alone if beside and alone else None,
        "load_1_5_15_min": [round(load, 2) for load in os.getloadavg()],
    }


def measured(shape: str, ranks: int, saves: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The record of each case as it is done, then the ratios."""
    steps = WARMUP + STEPS_BETWEEN * saves
    work = Work(model=shape, ranks=ranks, warmup_steps=WARMUP, steps=steps, max_seq_length=256)
    inputs = write_inputs(work, folder / "inputs")
    every = [
        f"train.max_steps={steps}",
        f"checkpoint.save_steps={STEPS_BETWEEN}",
        "checkpoint.save_total_limit=2",
    ]
    found = {}
    for name, is_async in (("training waits", "false"), ("behind training", "true")):
        output_dir = folder / name.replace(" ", "-")
        found[name] = figures(
            name, train(inputs.run_file, output_dir, *every, f"checkpoint.async={is_async}")
        )
        yield found[name]
    yield bare_deepspeed(inputs.model, folder / "deepspeed", ranks, saves)
    yield resumed(inputs.run_file, output_dir, steps)
    yield verified(output_dir)
    yield exported(output_dir, folder / "export")
    yield ratios(*found.values())


def main() -> None:
    """Print a JSON record a case, then the ratios."""
    if sys.argv[1:2] == [BARE]:
        save_with_deepspeed(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="What saving costs.")
    parser.add_argument("shape", help="a folder of benchmarks/models")
    parser.add_argument("ranks", type=int, nargs="?", default=2)
    parser.add_argument("saves", type=int, nargs="?", default=5, help="two or more: the first is told apart")
    asked = parser.parse_args()
    if asked.ranks < 1 or asked.saves < 2:
        parser.error("at least one rank and two saves are needed")
    with tempfile.TemporaryDirectory() as scratch:
        for record in measured(asked.shape, asked.ranks, asked.saves, Path(scratch)):
            print(json.dumps(record), flush=True)


def resumed(run_file: Path, output_dir: Path, steps: int) -> dict[str, Any]:
    """Go on from the newest checkpoint for a step."""
    entries = train(run_file, output_dir, "checkpoint.resume=auto", f"train.max_steps={steps + 1}")
    resume = next(entry for entry in reversed(entries) if entry["event"] == "resume")
    total = sum(resume["num_bytes_by_rank"])
    return {
        "case": "resume",
        "seconds": resume["seconds"],
        "num_bytes": total,
        "bytes_per_s": total / resume["seconds"],
    }


def verified(output_dir: Path) -> dict[str, Any]:
    """`megatune checkpoint verify` of the newest checkpoint, beside only reading its files."""
    newest = sorted((output_dir / "checkpoints").glob("step-????????"))[-1]
    files = [path for path in newest.rglob("*") if path.is_file()]
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    read_s = time.perf_counter() - started
    command = [sys.executable, "-m", "megatune", "checkpoint", "verify", str(newest), "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    num_bytes = sum(path.stat().st_size for path in files)
    (found,) = answer["checkpoints"]
    return {
        "case": "verify",
        "num_bytes": num_bytes,
        "seconds": found["seconds"],
        "bytes_per_s": num_bytes / found["seconds"],
        "only_read_bytes_per_s": num_bytes / read_s,
    }


def exported(output_dir: Path, target: Path) -> dict[str, Any]:
    """`megatune export`, its start included."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "megatune", "export", str(output_dir), str(target)],
        check=True,
        capture_output=True,
    )
    return {"case": "export", "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
