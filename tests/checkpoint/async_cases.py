"""What ranks do in the tests of saves behind training: train on a disk that is slow, and say how far training came."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tiny_runs import train_failing

from megatune.checkpoint import write
from megatune.checkpoint.snapshot import HostCopy
from megatune.launch.ranks import discover_rank
from megatune.train import loop
from megatune.train.saves import Saves

PATIENCE_S = 60.0


class SlowDisk:
    """Lets the tensors of a checkpoint out only when so many steps have begun after its save."""

    def __init__(self, steps: int, rank: int, faults: dict[str, str]) -> None:
        self._steps, self._rank, self._faults = steps, rank, faults
        self._real, self._real_step = write.write_tensor_file, loop.train_step
        self._real_copy, self._real_before_update = HostCopy.of, Saves.before_update
        self._begun = 0
        self._moved = threading.Condition()
        self._writing = 0
        self.most_at_once = 0
        self.waits = False
        """Whether training waits for a save, so that no step will begin."""
        self.update_waits = False

    def write(self, path: Path, tensors: Any, **how: Any) -> Any:
        step = path.parent.name.removesuffix(".tmp")
        with self._moved:
            self._writing += 1
            self.most_at_once = max(self.most_at_once, self._writing)
            wanted = self._begun + self._steps
            deadline = time.monotonic() + PATIENCE_S
            while not self.waits and self._begun < wanted:
                assert self._moved.wait(0.05) or time.monotonic() < deadline, "no step is taken meanwhile"
        try:
            self._fail(step)
            return self._real(path, tensors, **how)
        finally:
            self._writing -= 1

    def _fail(self, step: str) -> None:
        fault = self._faults.get(f"{step} rank {self._rank}")
        if fault:
            raise OSError(int(fault), os.strerror(int(fault)))

    def copy(self, host_copy: Any, state: Any) -> Any:
        """Begin to copy only when an optimizer step wants to change the state, or when nothing else goes on."""
        with self._moved:
            deadline = time.monotonic() + PATIENCE_S
            while "slow copy" in self._faults and not (self.waits or self.update_waits):
                assert self._moved.wait(0.05) or time.monotonic() < deadline, "no update is made meanwhile"
        if "slow copy" in self._faults:
            time.sleep(0.1)  # an update that did not wait would be over
        return self._real_copy(host_copy, state)

    def before_update(self, saves: Any) -> None:
        with self._moved:
            self.update_waits = True
            self._moved.notify_all()
        try:
            self._real_before_update(saves)
        finally:
            self.update_waits = False

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._moved:
            self._begun += 1
            self._moved.notify_all()
        own_signal = self._faults.get(f"signal in step {self._begun} to rank {self._rank}")
        if own_signal:
            os.kill(os.getpid(), signal.Signals[own_signal])
        if f"nan in step {self._begun}" not in self._faults:
            return self._real_step(*args, **kwargs)
        engine = args[0]
        real_loss = engine.loss
        engine.loss = lambda batch: real_loss(batch) * float("nan")
        try:
            return self._real_step(*args, **kwargs)
        finally:
            del engine.loss


def train_on_a_slow_disk(
    run_file: str, overrides: list[str], steps: int, faults: dict[str, str]
) -> tuple[str, int]:
    """How the run ends on this rank, and how many files of tensors it wrote at once at most.

    steps: that begin while a checkpoint's tensors wait for the disk. faults: `step-00000004 rank 1` -> errno
    of its write; `signal in step 3 to rank 0` -> name of the signal; `nan in step 5`, by the number of the call;
    `slow copy`: the state is copied when the next update is due, not before.
    """
    info = discover_rank()
    assert info is not None
    disk = SlowDisk(steps, info.rank, faults)
    real_finish = Saves.finish

    def finish(self: Saves, state: Any) -> Any:
        disk.waits = True
        try:
            return real_finish(self, state)
        finally:
            disk.waits = False

    write.write_tensor_file = disk.write  # type: ignore[assignment]
    loop.train_step, Saves.finish = disk.train_step, finish  # type: ignore[method-assign]
    HostCopy.of = lambda self, state: disk.copy(self, state)  # type: ignore[method-assign]
    Saves.before_update = lambda self: disk.before_update(self)  # type: ignore[method-assign]
    try:
        return train_failing(run_file, overrides), disk.most_at_once
    finally:
        write.write_tensor_file = disk._real
        loop.train_step, Saves.finish = disk._real_step, real_finish  # type: ignore[method-assign]
        HostCopy.of = disk._real_copy  # type: ignore[method-assign]
        Saves.before_update = disk._real_before_update  # type: ignore[method-assign]


def hashes(run: Path) -> dict[str, dict[str, Any]]:
    """Checkpoint -> file -> hash; of training.json, which holds all settings, what training has come to."""
    found = {}
    for folder in (run / "checkpoints").iterdir():
        files = json.loads((folder / "manifest.json").read_text())["files"]
        training = json.loads((folder / "training.json").read_text())
        found[folder.name] = {name: entry["xxh3_128"] for name, entry in files.items()} | {
            "training.json": training["state"]
        }
    return found
