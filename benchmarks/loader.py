"""How fast batches come out of prepared data: `python benchmarks/loader.py [STEPS] [ROUNDS]`.

Made-up rows of mixed length, packed and one a row, 1,024 tokens wide, four sequences a step; one process, which is
what a rank does between two steps. One JSON line a case: median and spread over the rounds.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from megatune.bench.inputs import write_inputs
from megatune.bench.suite import Work
from megatune.config import load_run
from megatune.data.batches import step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position
from megatune.launch.run_folder import RunFolder
from megatune.train.inputs import prepare_inputs

_SEQUENCES = 4


def measure(prepared: PreparedSet, steps: int) -> tuple[float, int]:
    """Processor seconds and tokens of so many steps' batches."""
    tokens, begun = 0, time.process_time()
    for step in range(steps):
        batches = step_batches(
            prepared,
            Position(cursor=step * _SEQUENCES % (prepared.num_rows - _SEQUENCES)),
            seed=42,
            micro_batch=_SEQUENCES,
            accumulation=1,
            data_parallel=1,
            dp_rank=0,
        )
        tokens += sum(batch.num_tokens for batch in batches)
    return time.process_time() - begun, tokens


def main(steps: int, rounds: int) -> None:
    """Measure packed and unpacked rows in turn."""
    work = Work.model_validate(
        {
            "model": "llama-17m",
            "rows": "mixed",
            "max_seq_length": 1024,
            "micro_batch": 4,
            "ranks": 1,
            "steps": 40,
        }
    )
    with tempfile.TemporaryDirectory(prefix="megatune-loader-") as scratch:
        inputs = write_inputs(work, Path(scratch))
        run = load_run(inputs.run_file).run
        cases = {
            "packed": prepare_inputs(run, RunFolder(run.train.output_dir)).train,
            "one document a row": PreparedSet.open(inputs.documents),
        }
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in cases}
        for _ in range(rounds + 1):
            for name, prepared in cases.items():
                found[name].append(measure(prepared, steps))
    for name, measured in found.items():
        per_token = [seconds / tokens for seconds, tokens in measured[1:]]  # the first one maps the files
        print(
            json.dumps(
                {
                    "rows": name,
                    "steps": steps,
                    "tokens_a_step": measured[-1][1] / steps,
                    "cpu_us_per_token": round(1e6 * statistics.median(per_token), 4),
                    "range": [round(1e6 * min(per_token), 4), round(1e6 * max(per_token), 4)],
                }
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
