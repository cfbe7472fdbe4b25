"""A prompt, the answer that is learned, and what an answer is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatune.tasks.chat import assistant_segments, whole_conversation
from megatune.tasks.columns import RowError
from megatune.tasks.options import TaskOptions
from megatune.tasks.segments import RenderChat, Segment
from megatune.tasks.template import reads_row, render

Gold = str | list[str]
"""What metrics compare: a text or a label; several labels, accepted answers, or tags."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One row as a question and its answer."""

    prompt: str
    """Ends without a blank: the one before an answer belongs to the answer, as it does to its first token. Empty where
    the row holds nothing to answer."""
    answer: str
    """As a model should write it, without blanks around it; empty when there is nothing to learn."""
    gold: Gold
    values: Mapping[str, object] = field(default_factory=dict)
    """The columns that were read, by megatune's names: a parser may need the words it looks for."""

    @property
    def target(self) -> str:
        """The answer as it follows the prompt."""
        return self.answer if self.prompt.endswith("\n") else f" {self.answer}"


def write_prompt(
    default: str, values: Mapping[str, object], row: Mapping[str, object], options: TaskOptions
) -> str:
    """The prompt of a row by the user's template, or by the task's own; empty where `values`, the task's columns, are.

    A template that reads other columns of the file is written whatever the task's columns hold.
    """
    template = options.template or default
    if all(_is_blank(value) for value in values.values()) and not reads_row(template):
        return ""
    offered = {**values, "labels": list(options.labels)}
    offered |= {"source_lang": options.source_lang, "target_lang": options.target_lang}
    return render(template, offered, row).rstrip(" \t")


def _is_blank(value: object) -> bool:
    return not value.strip() if isinstance(value, str) else not value


def exchange_segments(
    exchange: Exchange, options: TaskOptions, *, completion_only: bool, render_chat: RenderChat | None
) -> list[Segment]:
    """The exchange as it is trained on; nothing where there is no answer, or nothing to answer."""
    if not exchange.answer.strip() or not exchange.prompt:
        return []
    if not options.chat:
        return [Segment(exchange.prompt, is_target=not completion_only), Segment(exchange.target, True)]
    messages = [_user(exchange), {"role": "assistant", "content": exchange.answer}]
    render_chat = _required(render_chat)
    return (assistant_segments if completion_only else whole_conversation)(messages, render_chat)


def question(exchange: Exchange, options: TaskOptions, render_chat: RenderChat | None) -> Segment:
    """What a model is given to answer."""
    if not options.chat:
        return Segment(exchange.prompt, is_target=False)
    text = _required(render_chat)([_user(exchange)], True)
    return Segment(text, is_target=False, templated=True)


def _user(exchange: Exchange) -> dict[str, str]:
    return {"role": "user", "content": exchange.prompt}


def _required(render_chat: RenderChat | None) -> RenderChat:
    if render_chat is None:
        raise RowError(
            "is to be a chat (data.chat is true), but this tokenizer has no chat template. Take data.chat out, "
            "or use the tokenizer of an instruct model (model.tokenizer)"
        )
    return render_chat
