"""A model with whole weights on this rank, as evaluation asks it for predictions."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.tensor_parallel import VocabularyHead

Gather = Literal["auto", "once", "per_token"]
"""When an engine with divided weights makes them whole: for all of an evaluation, or at every token."""

_ROOM = 1.25
"""Free memory that whole weights must leave room for, as a multiple of them: caches come on top."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """What predicts. Ranks of a tensor-parallel group call it together, with the same tokens."""

    built: BuiltModel
    in_step: bool
    """Every call gathers weights: all ranks of the job must call it equally often."""

    @property
    def model(self) -> Any:
        return self.built.model


@contextmanager
def speaking(built: BuiltModel, *, in_step: bool) -> Iterator[Speaker]:
    """`built` made ready to predict: logits of the whole vocabulary, no defaults from its folder."""
    head = built.head
    model: Any = built.model
    defaults = getattr(model, "generation_config", None)  # a model with a classifier head has none
    # A folder's generation_config.json may hold a temperature or a repetition penalty.
    model.generation_config = GenerationConfig()
    if isinstance(head, VocabularyHead):
        head.gather_logits = True
    try:
        with torch.no_grad():
            yield Speaker(built=built, in_step=in_step)
    finally:
        model.generation_config = defaults
        if isinstance(head, VocabularyHead):
            head.gather_logits = False


def whole_weights_fit(world: World, share_bytes: int) -> bool:
    """Whether every rank has memory for its whole share of the weights. Collective: every rank calls it.

    Ranks of one host share its memory when they compute on the CPU.
    """
    hosts = world.gather_objects(socket.gethostname())
    on_this_host = hosts.count(socket.gethostname())
    free = _free_bytes(world.device, on_this_host)
    return not world.any_rank(free is not None and free < _ROOM * share_bytes)


def _free_bytes(device: torch.device, ranks_on_host: int) -> int | None:
    """Unused memory for this rank; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 // ranks_on_host if match else None
