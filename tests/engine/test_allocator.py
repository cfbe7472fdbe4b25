"""What a step frees: small blocks are kept for the next one, large ones go back, so that a heap does not grow."""

import subprocess
import sys

import pytest

MIB = 2**20
PROGRAM = """
import os, sys
import torch
from megatune.engine.allocator import keep_freed_memory

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

block_bytes, all_bytes = map(int, sys.argv[1:])
if not keep_freed_memory():
    sys.exit(3)
before = resident_bytes()
blocks = [torch.ones(block_bytes // 4) for _ in range(all_bytes // block_bytes)]
held = resident_bytes() - before
del blocks
print(held, resident_bytes() - before)
"""


@pytest.mark.parametrize(("block_bytes", "is_kept"), [(MIB, True), (3 * MIB, True), (5 * MIB, False)])
def test_blocks_below_four_mebibytes_are_kept_and_larger_ones_go_back(
    block_bytes: int, is_kept: bool
) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(block_bytes), str(240 * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("no glibc here: its allocator is the one that is told")
    assert done.returncode == 0, done.stderr
    held, left = map(int, done.stdout.split())

    assert held > 230 * MIB
    assert (left > 200 * MIB) if is_kept else (left < 40 * MIB)
