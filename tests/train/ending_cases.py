"""What a rank does in tests of runs that end with an error, and of starts of one request."""

import os

from tiny_runs import train

from megatune.launch.start_names import REQUEST_VARIABLE


def train_ending(run_file: str, overrides: list[str]) -> str:
    """The error that ends the run on this rank, of whatever class."""
    try:
        code = train(run_file, overrides)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"no error, exit code {code}"


def train_as(request: str, run_file: str, overrides: list[str]) -> int:
    """`train` as one of the starts of `request`."""
    os.environ[REQUEST_VARIABLE] = request
    try:
        return train(run_file, overrides)
    finally:
        del os.environ[REQUEST_VARIABLE]


def train_stopped_at_once(run_file: str, overrides: list[str]) -> int:
    """`train`, told to stop while it loads."""
    from megatune.train.loop import TrainingLoop

    original = TrainingLoop._is_stop_agreed
    TrainingLoop._is_stop_agreed = lambda self, **_: True  # type: ignore[method-assign]  # noqa: ARG005
    try:
        return train(run_file, overrides)
    finally:
        TrainingLoop._is_stop_agreed = original  # type: ignore[method-assign]
