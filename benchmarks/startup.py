"""How long the command line takes to answer: `python benchmarks/startup.py [RUNS]`.

Each run is a fresh interpreter; wall time and CPU time of the whole process, median and spread.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

from megatune.bench.record import machine

COMMANDS = (["--help"], ["--version"], ["init", "--task", "text"], ["init", "--schema"])


def measure(arguments: list[str], runs: int) -> dict[str, object]:
    """Seconds of `megatune ARGUMENTS`, after one run that warms the file cache."""
    walls, cpus = [], []
    for _ in range(runs + 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "megatune", *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - started)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "command": "megatune " + " ".join(arguments),
        "runs": runs,
        "wall_median_s": round(statistics.median(walls[1:]), 3),
        "wall_range_s": [round(min(walls[1:]), 3), round(max(walls[1:]), 3)],
        "cpu_median_s": round(statistics.median(cpus[1:]), 3),
    }


def main() -> None:
    """Print a JSON record of the machine, then one a command."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    packages = ("megatune", "typer", "pydantic", "rich")
    print(json.dumps({**machine(), "versions": {name: version(name) for name in packages}}))
    for arguments in COMMANDS:
        print(json.dumps(measure(list(arguments), runs)))


if __name__ == "__main__":
    main()
