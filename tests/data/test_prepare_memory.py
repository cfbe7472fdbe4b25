"""Preparing takes no more memory for many rows than for few, in this process and in workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
from data_sources import preparation
from transformers import AutoTokenizer
options = {"val_size": 0.1, "num_workers": int(sys.argv[2])}
train, _ = preparation([sys.argv[1]], AutoTokenizer.from_pretrained("tok"), Path("p"), **options).prepare_both()
own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(train.report.num_usable, own, worker)
"""
FEW, MANY = 10_000, 160_000
FLAT_KIB = 24 << 10
"""Of a row that was kept, be it only as numbers in lists, there would be 40 MiB more at least."""


def peaks_kib(folder: Path, num_rows: int, kind: str, num_workers: int) -> tuple[int, int]:
    path = folder / f"{num_rows}.{kind}"
    with path.open("w") as file:
        if kind == "json":
            file.write("[\n" + ",\n".join(json.dumps({"text": f"{i} is it"}) for i in range(num_rows)) + "]")
        else:
            file.writelines(json.dumps({"text": f"{i} is it"}) + "\n" for i in range(num_rows))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, path.name, str(num_workers)]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num_usable, own, worker = map(int, done.stdout.split())
    assert num_usable == round(0.9 * num_rows)
    return own, worker


@pytest.mark.parametrize(("kind", "num_workers"), [("jsonl", 2), ("json", 1)])
def test_sixteen_times_the_rows_take_no_more_memory(tmp_path, gpt2_like, kind, num_workers):
    gpt2_like.save_pretrained(tmp_path / "tok")
    few, many = (peaks_kib(tmp_path, num_rows, kind, num_workers) for num_rows in (FEW, MANY))
    assert many[0] - few[0] < FLAT_KIB
    assert many[1] - few[1] < FLAT_KIB
