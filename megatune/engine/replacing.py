"""Put functions of ours in the place of DeepSpeed's own, and notice when those are gone.

A method that DeepSpeed has renamed would take a replacement without a word and never call it.
"""

from collections.abc import Callable
from importlib.metadata import requires, version
from typing import Any

from megatune.errors import VersionError


def replace_method(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Have `owner`, an object of DeepSpeed, call `replacement` in the place of its method `name`.

    Raises VersionError when it has none.
    """
    method_of(owner, name)
    setattr(owner, name, replacement)


def method_of(owner: Any, name: str) -> Callable[..., Any]:
    """The method `name` that is to be replaced. Raises VersionError when there is none."""
    found: Callable[..., Any] | None = getattr(owner, name, None)
    if not callable(found):
        wanted = next(one for one in requires("megatune") or () if one.startswith("deepspeed"))
        raise VersionError(
            f"DeepSpeed {version('deepspeed')}: {type(owner).__name__} has no method {name}, which megatune replaces. "
            f"Install one that it was made for: pip install '{wanted}'"
        )
    return found
