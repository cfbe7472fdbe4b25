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
