"""A rank that `ask_ranks` has started."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatune.engine.start import join, leave
from megatune.engine.world import World
from megatune.errors import MegatuneError
from megatune.launch.ask_ranks import RESULT
from megatune.launch.ranks import discover_rank
from megatune.model.quiet import quiet_libraries

_TIMEOUT_S = 86_400.0
"""Ranks of a conversation wait for a person."""


def answer_as_rank(path: Path, work_out: Callable[[Mapping[str, Any], World], Mapping[str, Any]]) -> int:
    """Work out the question in `path` with the other ranks; the first writes the answer. Returns the exit code.

    The question says `tensor_parallel`. Collective: every rank calls it.
    """
    rank = discover_rank()
    assert rank is not None, "ask_ranks starts this as a rank"
    quiet_libraries()
    question = json.loads(path.read_text(encoding="utf-8"))
    try:
        world = join(rank, tensor_parallel=question["tensor_parallel"], timeout_s=_TIMEOUT_S)
        answer = work_out(question, world)
        if world.is_first:
            path.with_name(RESULT).write_text(json.dumps(answer), encoding="utf-8")
        leave()
    except MegatuneError as error:
        print(f"megatune: {error}", file=sys.stderr)
        return error.exit_code
    return 0
