"""How fast examples are packed into rows, and how full those are: `python benchmarks/packing.py [EXAMPLES]`.

Prints JSON lines: the machine, then one for each distribution of lengths.
"""

import json
import os
import platform
import sys
import time

import numpy as np

from megatune.data.pack import pack
from megatune.launch.devices import count_cpus, cpu_model

MAX_LENGTH = 2048
DISTRIBUTIONS = {
    "short (32 to 96 tokens)": lambda draw, count: draw.integers(32, 97, count),
    "instructions (log-normal, median 300)": lambda draw, count: draw.lognormal(5.7, 0.8, count),
    "long (512 to 2048 tokens)": lambda draw, count: draw.integers(512, 2049, count),
}


def packed(lengths: np.ndarray) -> dict[str, object]:
    """How the examples of these lengths were packed."""
    begun = time.process_time()
    windows = pack(
        lambda first, count: lengths[first : first + count], len(lengths), max_length=MAX_LENGTH, seed=0
    )
    rows = [row for window in windows for row in window]
    spent_s = time.process_time() - begun
    return {
        "examples": len(lengths),
        "examples_per_cpu_s": round(len(lengths) / spent_s),
        "fill_ratio": round(int(lengths.sum()) / (len(rows) * MAX_LENGTH), 4),
    }


def main() -> None:
    """Print a JSON record of the machine, and one for each distribution of lengths."""
    num_examples = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    machine = {"cpu": cpu_model(), "cpu_cores": count_cpus(), "python": platform.python_version()}
    print(json.dumps({**machine, "load_1_5_15_min": [round(load, 2) for load in os.getloadavg()]}))
    for name, drawn in DISTRIBUTIONS.items():
        lengths = np.clip(drawn(np.random.default_rng(0), num_examples), 1, MAX_LENGTH).astype(np.int64)
        print(json.dumps({"lengths": name, "max_seq_length": MAX_LENGTH, **packed(lengths)}))


if __name__ == "__main__":
    main()
