"""What ranks do in the sweep of signals: train, and get signals at a chosen moment of a chosen step."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tiny_runs import train

from megatune.checkpoint import in_flight, write
from megatune.engine.zero import ZeroEngine
from megatune.launch.ranks import discover_rank
from megatune.train import loop
from megatune.train import rank as rank_module
from megatune.train.evaluating import Evaluations

MOMENTS: dict[str, tuple[Any, str]] = {
    "meeting": (rank_module, "find_place"),
    "loading": (ZeroEngine, "__init__"),
    "rows of the step": (loop, "step_batches"),
    "backward of the step": (ZeroEngine, "backward"),
    "update of the step": (ZeroEngine, "step"),
    "evaluation": (Evaluations, "score"),
    "writing": (write, "write_tensor_file"),
    "commit": (in_flight, "commit"),
}
"""Where a signal comes: in a call of that function."""


def train_with_signals(
    run_file: str, overrides: list[str], moment: str, call: int, ranks: tuple[int, ...], signals: list[str]
) -> int:
    """`train`; each of `ranks` gets `signals`, one after the other, in that call of the moment's function."""
    info = discover_rank()
    assert info is not None
    is_own = info.rank in ranks
    with ExitStack() as at_end:
        at_end.enter_context(_in_call(*MOMENTS[moment], call, lambda: _send(signals) if is_own else None))
        return train(run_file, overrides)


def _send(signals: list[str]) -> None:
    for name in signals:
        os.kill(os.getpid(), signal.Signals[name])


@contextmanager
def _in_call(owner: Any, name: str, call: int, act: Callable[[], None]) -> Iterator[None]:
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)
