"""What a task makes of one row: pieces of text that are trained on or only read."""

from collections.abc import Callable
from dataclasses import dataclass

RenderChat = Callable[[list[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> the conversation as the chat template of the model writes it."""


@dataclass(frozen=True)
class Segment:
    """A piece of one row's text; the pieces of a row are read one after another, nothing in between."""

    text: str
    is_target: bool
    """Whether a loss is taken on its tokens."""
    templated: bool = False
    """Written by the chat template, which sets its own special tokens: no BOS is put before a row
    that begins with such a piece, and no EOS after a row that ends with one."""
