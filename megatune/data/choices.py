"""The tokens of each label of a classification, as training writes them behind a prompt."""

from typing import TYPE_CHECKING

from megatune.data.tokenize import Limit, chat_renderer, tokenize
from megatune.errors import DataError
from megatune.tasks import Exchange, TaskOptions
from megatune.tasks.exchange import exchange_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANY_LENGTH = 2**31 - 1


def label_tokens(options: TaskOptions, prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The target tokens of each of `options.labels`, with the token that ends an answer.

    prompt: of any row; labels follow each prompt alike. Raises DataError for labels that the tokenizer
    cannot tell apart, or of which one is the whole beginning of another.
    """
    render_chat = chat_renderer(tokenizer)
    rows = [
        exchange_segments(
            Exchange(prompt=prompt, answer=label, gold=label),
            options,
            completion_only=True,
            render_chat=render_chat,
        )
        for label in options.labels
    ]
    found = tokenize(rows, tokenizer, Limit(max_length=_ANY_LENGTH))
    examples = [found[at] for at in range(len(rows))]
    tokens = [example.input_ids[example.is_target].tolist() for example in examples]
    _refuse_beginnings(tokens, options.labels)
    return tokens


def _refuse_beginnings(tokens: list[list[int]], labels: tuple[str, ...]) -> None:
    by_tokens: dict[tuple[int, ...], str] = {}
    for ids, label in zip(tokens, labels, strict=True):
        other = by_tokens.setdefault(tuple(ids), label)
        if other != label:
            raise DataError(
                f"the tokenizer writes the labels {other!r} and {label!r} alike; rename one of them"
            )
    for ids, label in zip(tokens, labels, strict=True):
        longer = next((by_tokens[one] for one in by_tokens if one[: len(ids)] == tuple(ids) != one), None)
        if longer is not None:
            raise DataError(
                f"the label {label!r} is the beginning of {longer!r}, and nothing that this tokenizer writes ends "
                "it; rename one of them"
            )
