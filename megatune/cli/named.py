"""Problems of a run file are told with its path, also those that are found where the path is not known."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from megatune.errors import ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def names_run_file(
    command: Callable[Concatenate[Path, _P], _R],
) -> Callable[Concatenate[Path, _P], _R]:
    """Wrap a command whose first argument is a run file."""

    @wraps(command)
    def wrapped(run_file: Path, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(run_file, *args, **kwargs)
        except ConfigError as error:
            if error.source is not None:
                raise
            raise ConfigError(error.problems, source=str(run_file)) from error.__cause__

    return wrapped
