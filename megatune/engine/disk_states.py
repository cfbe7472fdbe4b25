"""Offload to a local disk: the fp32 weights and moments of ZeRO-3 in files that are mapped into memory.

DeepSpeed's CPU Adam steps them where they lie, one sub-group after another, as it does with offload to host memory:
the same bits, and a checkpoint reads and writes them like any other tensor. DeepSpeed's own way to a disk is not
taken: docs/zero.md says what it gets wrong.

The files have no names, so that a killed run leaves nothing behind, and have all their space from the start, so that
a full disk is met before the first step.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from megatune.engine.replacing import method_of, replace_method
from megatune.errors import ConfigError, MegatuneError
from megatune.units import format_bytes

_KINDS = ("weight", "exp_avg", "exp_avg_sq")
_PAGE_ELEMENTS = mmap.PAGESIZE // 4


class DiskGroup:
    """One sub-group's fp32 weights and moments, (elements,) each, in a file of `folder`.

    Raises ConfigError where the folder cannot hold it.
    """

    def __init__(self, folder: Path, num_elements: int) -> None:
        stride = -(-num_elements // _PAGE_ELEMENTS) * _PAGE_ELEMENTS
        num_bytes = len(_KINDS) * stride * 4
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # lives as long as its mapping
            os.posix_fallocate(self._file.fileno(), 0, num_bytes)
        except OSError as error:
            raise ConfigError(
                [
                    f"parallel.offload = nvme:{folder}: no file of {format_bytes(num_bytes)} can be made there "
                    f"({error.strerror}). Give a folder of a local disk with room for 12 bytes a parameter."
                ]
            ) from error
        self._map = mmap.mmap(self._file.fileno(), num_bytes)
        whole = torch.frombuffer(self._map, dtype=torch.float32)
        self.weight, self.exp_avg, self.exp_avg_sq = (
            whole.narrow(0, index * stride, num_elements) for index in range(len(_KINDS))
        )

    def will_need(self) -> None:
        """Have the kernel begin to read what is not in memory."""
        self._map.madvise(mmap.MADV_WILLNEED)

    def write_back(self) -> None:
        """Write what has changed to the disk; its memory is the kernel's from here on. Raises MegatuneError."""
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise MegatuneError(
                f"the disk of parallel.offload could not be written ({error.strerror}): weights and moments there "
                "may be lost. Go on from the last checkpoint, on another disk."
            ) from error
        self._map.madvise(mmap.MADV_DONTNEED)


class DiskStates:
    """All sub-groups of a rank, in the order in which the optimizer steps them."""

    def __init__(self, folder: Path) -> None:
        self.groups: list[DiskGroup] = []
        self._folder = folder
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")
        self._writing: Future[None] | None = None

    @contextmanager
    def made_by_deepspeed(self) -> Iterator[None]:
        """Inside, DeepSpeed makes its stage-3 optimizer with the states here; after it, `follow` its steps."""
        own = DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions
        DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions = lambda zero: self._create(zero)
        try:
            yield
        finally:
            DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions = own

    def _create(self, zero: Any) -> None:
        """What stands for `_create_fp32_partitions`: no more than one sub-group is whole in memory."""
        zero.subgroup_to_device = dict.fromkeys(range(len(zero.fp16_partitioned_groups_flat)), "cpu")
        groups = zip(zero.fp16_partitioned_groups_flat, zero.fp16_partitioned_groups_flat_id, strict=True)
        for flat, ids in groups:
            group = DiskGroup(self._folder, flat.numel())
            master = group.weight.copy_(flat).requires_grad_()
            master.ds_id = f"{ids[0]}_{ids[-1]}"  # type: ignore[attr-defined]
            moments = {"exp_avg": group.exp_avg, "exp_avg_sq": group.exp_avg_sq}
            zero.optimizer.state[master] = {"step": 0, **moments}
            zero.fp32_partitioned_groups_flat.append(master)
            group.write_back()
            self.groups.append(group)
        for param_group in zero.optimizer.param_groups:
            param_group["params"] = []  # the step gives it one sub-group after another

    def follow(self, zero: Any) -> None:
        """Read each sub-group ahead of its turn in the steps of `zero`, and write it back after."""
        prepare, release = method_of(zero, "_prepare_sub_group"), method_of(zero, "_release_sub_group")

        def prepared(group: int, timers: Any) -> None:
            if group + 1 < len(self.groups):
                self.groups[group + 1].will_need()
            prepare(group, timers)

        def released(group: int, timers: Any) -> None:
            release(group, timers)
            self._wait()  # no more than two sub-groups wait to be written
            self._writing = self._writer.submit(self.groups[group].write_back)

        replace_method(zero, "_prepare_sub_group", prepared)
        replace_method(zero, "_release_sub_group", released)

    def write_back(self) -> None:
        """Write all that has changed outside of a step."""
        self._wait()
        for group in self.groups:
            group.write_back()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
