"""Optimizer steps of a 1 B-parameter model on this machine's CPU: `python benchmarks/one_billion.py [OPTIMIZER]`.

One rank, fp32, every parameter trained on the same row again and again, so that a loss that does not fall is a fault.
Prints a JSON object: parameters, losses, seconds a step, peak memory. Under stage 0, for there is nobody to share with:
there the fp32 weights are the masters, and a parameter takes 8 bytes with its gradient, adamw 8 more, adagrad 4, sgd
none. ZeRO-3 keeps masters beside the weights, 20 bytes with adamw: the kernel killed that at 24 GB.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from megatune.bench.inputs import write_inputs
from megatune.bench.suite import Work
from megatune.report.metrics import read_metrics

STEPS = 6
WORK = Work(
    model="llama-1b",
    max_seq_length=128,
    micro_batch=1,
    ranks=1,
    precision="fp32",
    warmup_steps=0,
    steps=STEPS,
)
LEARNING_RATES = {"adamw": 1e-4, "adagrad": 1e-3, "sgd": 0.1}


def train(optimizer: str, folder: Path) -> dict[str, object]:
    """Take the steps in `folder`; what metrics.jsonl says of them."""
    inputs = write_inputs(WORK, folder)
    row, run = folder / "row.jsonl", folder / "run"
    first = (folder / "rows.jsonl").read_text().splitlines()[0]
    row.write_text(f"{first}\n" * STEPS)
    overrides = [
        f"data.train={row}",
        "parallel.zero_stage=0",
        f"train.output_dir={run}",
        f"train.optimizer={optimizer}",
        f"train.learning_rate={LEARNING_RATES[optimizer]}",
        "model.gradient_checkpointing=true",
    ]
    subprocess.run(
        [sys.executable, "-m", "megatune", "train", str(inputs.run_file), *overrides],
        check=True,
        stdout=sys.stderr,
    )
    events = read_metrics(run / "metrics.jsonl")
    steps = [event for event in events if event["event"] == "step"]
    described = next(event for event in events if event["event"] == "run")
    return {
        "parameters": described["num_params"],
        "engine": described["details"]["engine"],
        "losses": [step["loss"] for step in steps],
        "step_seconds": [step["step_seconds"] for step in steps],
        "tokens_per_step": steps[0]["tokens"],
        "peak_memory_bytes": max(step["peak_memory_bytes"] for step in steps),
    }


def main() -> None:
    optimizer = sys.argv[1] if len(sys.argv) > 1 else "adamw"
    if optimizer not in LEARNING_RATES:
        sys.exit(f"one_billion.py: OPTIMIZER is one of {', '.join(LEARNING_RATES)}, not {optimizer}")
    with tempfile.TemporaryDirectory(prefix="megatune-1b-") as folder:
        print(json.dumps({"optimizer": optimizer, **train(optimizer, Path(folder))}))


if __name__ == "__main__":
    main()
