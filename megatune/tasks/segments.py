"""What a task makes of one row: pieces of text that are trained on or only read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

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


class SegmentsOf(Protocol):
    """How a task turns one row into segments.

    `columns` maps the names megatune reads (`prompt`) to the columns of the file (`question`).
    `render_chat` is None when the tokenizer has no chat template. An empty list means that the row
    holds nothing to train on. Raises RowError, without the place: who reads the rows knows it.
    """

    def __call__(
        self,
        row: Mapping[str, object],
        *,
        columns: Mapping[str, str],
        completion_only: bool,
        render_chat: RenderChat | None,
    ) -> list[Segment]: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of fine-tuning data; a new one is a module with a `TASK` and a line in `TASKS`."""

    name: str
    """As written in `data.task`."""
    forms: tuple[tuple[str, ...], ...]
    """The sets of columns of which a row must have one, the preferred one first."""
    segments: SegmentsOf
