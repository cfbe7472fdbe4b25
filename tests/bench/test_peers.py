"""What the peers of a comparison share: the group they meet in, and how each begins."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatune.bench.measure import PEERS
from megatune.launch.ports import reserve_port
from megatune.launch.rank_info import RankInfo
from megatune.launch.ranks import rank_environment

# In the Trainer's place: it sums its losses, which lie on the host, in the group that it finds.
TRAINER = """
import sys, types
import torch
import torch.distributed as dist
import run_peer
def measure(spec):
    dist.all_reduce(losses := torch.ones(2))
    return {"losses": losses.tolist(), "of": spec.peer}
sys.modules["hf_trainer"] = types.SimpleNamespace(measure=measure)
run_peer.main()
"""


def test_the_trainer_finds_the_group_of_all_peers(tmp_path: Path) -> None:
    spec = {"peer": "trainer-zero3", "model": "", "data": "", "answer": str(tmp_path / "answer.json"),
            "precision": "fp32", "micro_batch": 1, "warmup_steps": 1, "steps": 1}  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with reserve_port() as port:
        alone = RankInfo(
            rank=0, local_rank=0, world_size=1, local_world_size=1, master_addr="127.0.0.1", master_port=port,
            launcher="torchrun",
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", TRAINER, str(tmp_path / "spec.json")],
            env=rank_environment(alone, threads=1),
            cwd=PEERS,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "answer.json").read_text()) == {"losses": [1.0, 1.0], "of": "trainer-zero3"}


def test_a_peer_tries_out_no_op_of_deepspeed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    monkeypatch.syspath_prepend(str(PEERS))
    engines = importlib.import_module("engines")
    monkeypatch.setattr(
        deepspeed.accelerator, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda")
    )
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)

    engines.without_unused_op()

    assert "__compatible_ops__" not in vars(deepspeed.ops), "DeepSpeed fills the table when it is read"
