"""What a rank does in the test of memory at load: build a model while a thread watches this process."""

import gc
import threading
import time
from pathlib import Path
from typing import Any

import torch
from parity_steps import tiny_run, world_of
from transformers import AutoModelForCausalLM

from megatune.config import BatchShape
from megatune.engine.zero import _build
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config


def private_bytes() -> int:
    """Memory that belongs to this process alone: mapped files, which the ranks of a node share, are not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no RssAnon line")


class Watch:
    """The largest `private_bytes` while it is entered, beyond what there was before."""

    def __enter__(self) -> "Watch":
        gc.collect()
        self._before = self._peak = private_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.grown = private_bytes() - self._before
        self.peak = self._peak - self._before

    def _sample(self) -> None:
        while not self._ended.is_set():
            self._peak = max(self._peak, private_bytes())
            time.sleep(0.001)


def build_watched(warm_up: str, folder: str, precision: str) -> dict[str, Any]:
    """Private bytes that building the model of `folder` at tp=2 takes: at its peak and when it is done.

    `warm_up` is a tiny model that is built first, so that imports and buffers are not counted.
    """
    world = world_of(2)

    def build(model: str) -> Any:
        run = tiny_run(model, 2, precision=precision)
        batch = BatchShape(micro=1, accumulation=1, global_sequences=world.data_parallel)
        return _build(run, open_source(Path(model)), world, make_ds_config(run, batch), widen_bf16=False)

    build(warm_up)
    with Watch() as watch:
        built = build(folder)
    return {"peak": watch.peak, "grown": watch.grown, "num_params": built.num_params}


def load_plainly_watched(folder: str) -> dict[str, Any]:
    """The same for what a rank would do without megatune: `from_pretrained` in bf16."""
    with Watch() as watch:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return {"peak": watch.peak, "grown": watch.grown, "num_params": model.num_parameters()}
