"""From the command to the first step, beside bare imports and loading: `python benchmarks/first_step.py [--rounds 3]`.

Bare are as many processes as ranks that import what a rank needs and load the model, all at once, and end. megatune is
the whole of `megatune train` until its first step has been taken, less the time of that step; the rows are prepared
and the DeepSpeed ops compiled before. Round after round in turn, after one of each that is not counted. Prints a line
of JSON: seconds of wall time, and processor time of all processes (of megatune with the step and the end of the run).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from megatune.bench.inputs import Inputs, write_inputs
from megatune.bench.record import machine
from megatune.bench.suite import Work
from megatune.launch.environment import source_commit
from megatune.launch.ranks import child_environment
from megatune.report.metrics import read_metrics

BARE = """
import sys
import torch, deepspeed, datasets
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure both in turn and print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--model", default="smollm2-135m", help="a folder of benchmarks/models, or another model's"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    work = Work(model=asked.model, max_seq_length=128, micro_batch=1, ranks=asked.ranks, precision="bf16",
                warmup_steps=0, steps=1)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="megatune-first-step-") as scratch:
        inputs = write_inputs(work, Path(scratch))
        ways: dict[str, Callable[[], float]] = {
            "bare": lambda: load_bare(inputs, asked.ranks),
            "megatune": lambda: train_a_step(inputs, Path(scratch)),
        }
        wall_s: dict[str, list[float]] = {name: [] for name in ways}
        cpu_s: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.rounds + 1):
            for name, way in ways.items():
                before = cpu_of_children_s()
                seconds = way()
                if number:
                    wall_s[name].append(round(seconds, 2))
                    cpu_s[name].append(round(cpu_of_children_s() - before, 2))
    ratios = [ours / bare for ours, bare in zip(wall_s["megatune"], wall_s["bare"], strict=True)]
    head = {"machine": machine(), "commit": source_commit(), "model": asked.model, "ranks": asked.ranks}
    found = {"wall_s": wall_s, "cpu_s": cpu_s, "times_bare": round(statistics.median(ratios), 2)}
    print(json.dumps({**head, **found}))


def load_bare(inputs: Inputs, num_ranks: int) -> float:
    """Seconds until as many processes as ranks have imported the libraries and loaded the model."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", BARE, str(inputs.model)]
    processes = [
        subprocess.Popen(
            command,
            env=child_environment(ENVIRONMENT),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(num_ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"first_step.py: a bare process ended with {codes}")
    return time.perf_counter() - begun


def train_a_step(inputs: Inputs, scratch: Path) -> float:
    """Seconds from the command to the first step, without that step itself."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
    command = [sys.executable, "-m", "megatune", "train", str(inputs.run_file), f"train.output_dir={folder}"]
    begun = time.time()
    done = subprocess.run(
        command, env=child_environment(ENVIRONMENT), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"first_step.py: megatune train ended with {done.returncode}:\n{done.stderr[-2000:]}")
    step = next(entry for entry in read_metrics(folder / "metrics.jsonl") if entry["event"] == "step")
    return datetime.fromisoformat(step["time"]).timestamp() - step["step_seconds"] - begun


def cpu_of_children_s() -> float:
    """Processor time of the processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
