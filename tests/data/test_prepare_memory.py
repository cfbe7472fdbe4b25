"""Preparing takes no more memory for many rows than for few, in this process and in workers."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from data_sources import Source

from megatune.data.read import find_files

SCRIPT = """
import resource, sys
from pathlib import Path
from data_sources import preparation
from transformers import AutoTokenizer
options = {"val_size": 0.1, "num_workers": 2}
train, _ = preparation([sys.argv[1]], AutoTokenizer.from_pretrained("tok"), Path("p"), **options).prepare_both()
own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(train.report.num_usable, own, worker)
"""
FEW, MANY = 4_000, 100_000
FLAT_KIB = 16 << 10
"""Of a row that was kept, be it only as numbers in lists, there would be 25 MiB more at least."""


def lines(num_rows: int) -> list[str]:
    return [json.dumps({"text": f"{i} is it"}) for i in range(num_rows)]


def peaks_kib(folder: Path, num_rows: int) -> tuple[int, int]:
    path = folder / f"{num_rows}.jsonl"
    path.write_text("\n".join(lines(num_rows)))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, path.name]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num_usable, own, worker = map(int, done.stdout.split())
    assert num_usable == round(0.9 * num_rows)
    return own, worker


def test_many_rows_take_no_more_memory_than_few(tmp_path, gpt2_like):
    gpt2_like.save_pretrained(tmp_path / "tok")
    few, many = (peaks_kib(tmp_path, num_rows) for num_rows in (FEW, MANY))
    assert many[0] - few[0] < FLAT_KIB
    assert many[1] - few[1] < FLAT_KIB


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.csv"])
def test_files_are_read_in_pieces(tmp_path, name):
    def peak_bytes(num_rows):
        text = "[" + ",\n".join(lines(num_rows)) + "]" if name == "a.json" else "\n".join(lines(num_rows))
        text = "text\n" + "cell of it\n" * num_rows if name == "a.csv" else text
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode(), 1) if name.endswith("gz") else text.encode())
        files = find_files(Source([str(path)]), split_name="train", scratch=tmp_path)
        tracemalloc.start()
        assert sum(1 for _, block in files.blocks() for _ in block.rows()) == num_rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(40_000) < peak_bytes(10_000) + (1 << 20)
