"""How fast and in how much memory data is prepared: `python benchmarks/prepare.py [MODEL] [TEXTS] [MB] [ROUNDS]`.

MODEL is a folder with a tokenizer, TEXTS a file of dialogues whose sentences are put together anew to rows
of about a kilobyte; `megatune fetch demo` brings both. Beside it the bare `tokenizers` library does nothing
but make ids of texts that are in memory already, on the same cores. Round after round, so that whatever
else the machine does meets all of them. Prints JSON lines: machine, cases, ratios.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from megatune.bench.record import machine

BARE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
begun, cpu = time.perf_counter(), time.process_time()
num = 0
for start in range(0, len(texts), 1000):
    num += sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts[start : start + 1000]))
print(json.dumps({"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu, "ids": num}))
"""
MEGATUNE = """
import json, os, resource, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace as Source
from transformers import AutoTokenizer
from megatune.data.prepare import Preparation, Settings
def cpu_s():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
source = Source(paths=[sys.argv[2]], split=None, columns={}, max_samples=None)
with tempfile.TemporaryDirectory(dir=Path(sys.argv[2]).parent) as folder:
    begun, cpu = time.perf_counter(), cpu_s()
    made = Preparation(
        sources=[source], split_name="train", tokenizer=tokenizer, tokenizer_name="bench", folder=Path(folder),
        settings=Settings(task="text", max_seq_length=1024), num_workers=int(sys.argv[3])).prepare()
    found = {"wall_s": time.perf_counter() - begun, "cpu_s": cpu_s() - cpu, "ids": made.num_tokens - made.num_examples}
    found["fill_ratio"] = made.report.fill_ratio
found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found["peak_bytes_worker"] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps(found))
"""


def write_corpus(texts: Path, target: Path, num_bytes: int) -> None:
    """Rows of about a kilobyte, sentences of `texts` in an order of their own, until there are `num_bytes`."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    said = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    draw = random.Random(0)
    with target.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            row: list[str] = []
            while sum(map(len, row)) < draw.randint(200, 1800):
                row.append(draw.choice(said))
            file.write(json.dumps({"text": " ".join(row)}, ensure_ascii=False) + "\n")


def run(program: str, *arguments: str, threads: int) -> dict[str, float]:
    """What one fresh process measured."""
    environ = {
        **os.environ,
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": str(threads > 1).lower(),
    }
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a JSON record of the machine, one a case, and one of the ratios."""
    given = dict(enumerate(sys.argv[1:]))
    model, texts = given.get(0, "assets/smollm2-135m"), Path(given.get(1, "assets/dialogues/train.jsonl"))
    size_mb, rounds = int(given.get(2, "64")), int(given.get(3, "3"))
    missing = [str(path) for path in (Path(model) / "tokenizer.json", texts) if not path.is_file()]
    if missing:
        sys.exit(f"prepare.py: not there: {', '.join(missing)}. `megatune fetch demo` brings them, here")
    packages = ("megatune", "tokenizers", "transformers")
    print(json.dumps({**machine(), "versions": {name: version(name) for name in packages}}))
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "rows.jsonl"
        write_corpus(texts, corpus, size_mb * 10**6)
        cases = list(itertools.product((1, 2), ("tokenizers", "megatune")))
        found: dict[tuple[int, str], list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(rounds):
            for workers, name in cases:
                extra = [str(workers)] if name == "megatune" else []
                program = MEGATUNE if extra else BARE
                found[workers, name].append(run(program, model, str(corpus), *extra, threads=workers))
        summaries = {case: summed(*case, size_mb, measured) for case, measured in found.items()}
        for summary in summaries.values():
            print(json.dumps(summary))
        print(json.dumps(ratios(summaries)))


def summed(workers: int, name: str, size_mb: int, measured: list[dict[str, float]]) -> dict[str, object]:
    """The median of the rounds, and their range."""
    walls = [one["wall_s"] for one in measured]
    record: dict[str, object] = {
        "program": name,
        "processes" if name == "megatune" else "threads": workers,
        "megabytes": size_mb,
        "rounds": len(measured),
        "ids": measured[0]["ids"],
        "wall_median_s": round(statistics.median(walls), 2),
        "wall_range_s": [round(min(walls), 2), round(max(walls), 2)],
        "cpu_median_s": round(statistics.median(one["cpu_s"] for one in measured), 2),
    }
    for key in ("peak_bytes", "peak_bytes_worker", "fill_ratio"):
        if key in measured[0]:
            record[key] = max(one[key] for one in measured)
    return record


def ratios(summaries: dict[tuple[int, str], dict[str, object]]) -> dict[str, float]:
    """The speed of megatune as a share of the library's, and what a second process brings."""

    def seconds(workers: int, name: str, clock: str) -> float:
        return float(str(summaries[workers, name][f"{clock}_median_s"]))

    shares = {
        f"speed_of_library_{clock}_{workers}": round(
            seconds(workers, "tokenizers", clock) / seconds(workers, "megatune", clock), 3
        )
        for workers, clock in itertools.product((1, 2), ("wall", "cpu"))
    }
    scaling = round(seconds(1, "megatune", "wall") / seconds(2, "megatune", "wall"), 3)
    return {**shares, "speed_up_of_2_processes": scaling}


if __name__ == "__main__":
    main()
