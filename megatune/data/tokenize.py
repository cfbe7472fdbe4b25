"""Text segments -> token ids with their loss mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt

from megatune.errors import DataError
from megatune.tasks import RenderChat, RowError, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One document, ready to be trained on."""

    input_ids: Ids
    """(length,), int32."""
    is_target: Mask
    """(length,). Never true for the first token, which nothing predicts: its sum is the number of losses."""


@dataclass(frozen=True)
class Tokenized:
    """An example and how much of its row it had to leave out."""

    example: Example
    num_cut: int
    """Tokens beyond the maximum length, dropped at the right."""


def chat_renderer(tokenizer: "PreTrainedTokenizerBase") -> RenderChat | None:
    """The chat template of `tokenizer` as a function, or None when it has none."""
    if not tokenizer.chat_template:
        return None

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except jinja2.TemplateError as error:
            raise RowError(f"is refused by the chat template of this tokenizer: {error}") from error

    return render


def end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the end-of-sequence token; DataError when there is none."""
    found: object = tokenizer.eos_token_id
    if isinstance(found, int):
        return found
    raise DataError(
        f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no end-of-sequence "
        f"token, so a model could never learn to stop. Set eos_token in its tokenizer_config.json"
    )


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills rows up. Only a filler: losses are masked by length, never by this id, so it
    may be the end-of-sequence token, and is where the tokenizer has no padding token."""
    found: object = tokenizer.pad_token_id
    return found if isinstance(found, int) else end_id(tokenizer)


def tokenize(
    rows: Sequence[list[Segment]], tokenizer: "PreTrainedTokenizerBase", *, max_length: int
) -> list[Tokenized]:
    """One example for each row of segments; a row without segments gives an empty example.

    The text of a row is tokenised as a whole, as the model will meet it: tokenised piece by piece,
    " Paris" after "is" becomes other tokens than "is Paris". A token belongs to the segment of its
    last character, from the offsets of a fast tokenizer. A slow tokenizer has no offsets, so there,
    and only there, the segments are tokenised one by one.
    BOS is added as the tokenizer does to plain text, EOS at the end, trained like the text before
    it; neither where the chat template wrote the text, because it has written its own.
    """
    encoded = _with_offsets if tokenizer.is_fast else _piece_by_piece
    found: list[Tokenized] = [_cut([], [], max_length)] * len(rows)
    for plain in (True, False):
        chosen = [i for i, row in enumerate(rows) if row and row[0].templated is not plain]
        batch = [rows[i] for i in chosen]
        for i, (ids, targets) in zip(chosen, encoded(batch, tokenizer, plain), strict=True):
            _end(ids, targets, rows[i][-1], tokenizer)
            found[i] = _cut(ids, targets, max_length)
    return found


_Encoded = tuple[list[int], list[bool]]


def _with_offsets(
    rows: list[list[Segment]], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> list[_Encoded]:
    if not rows:
        return []
    encoded: Any = tokenizer(
        ["".join(segment.text for segment in row) for row in rows],
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # no warning about long rows: they are cut and counted here
    )
    parts = zip(encoded.input_ids, encoded.offset_mapping, encoded.special_tokens_mask, strict=True)
    return [
        (list(ids), _targets(row, offsets, added))
        for row, (ids, offsets, added) in zip(rows, parts, strict=True)
    ]


def _targets(row: list[Segment], offsets: list[tuple[int, int]], added: list[int]) -> list[bool]:
    """Whether each token's last character lies in a target segment; never for tokens added around the text.

    The last character, because a byte-level tokenizer may leave the blank before a word out of its
    offsets: a token that is nothing but such a blank has the offsets (end, end).
    """
    ends = np.cumsum([len(segment.text) for segment in row])
    last = np.array([max(end - 1, 0) for _, end in offsets], dtype=np.int64)
    segment_of = np.minimum(np.searchsorted(ends, last, side="right"), len(row) - 1)
    is_target = np.array([segment.is_target for segment in row])[segment_of]
    found: list[bool] = (is_target & ~np.array(added, dtype=bool)).tolist()
    return found


def _piece_by_piece(
    rows: list[list[Segment]], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> list[_Encoded]:
    return [_pieces(row, tokenizer, add_special_tokens) for row in rows]


def _pieces(row: list[Segment], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool) -> _Encoded:
    ids: list[int] = []
    targets: list[bool] = []
    for segment in row:
        piece: list[int] = tokenizer.encode(segment.text, add_special_tokens=False, verbose=False)
        ids += piece
        targets += [segment.is_target] * len(piece)
    if not add_special_tokens:
        return ids, targets
    whole: list[int] = list(tokenizer.build_inputs_with_special_tokens(ids))
    before = next(n for n in range(len(whole)) if whole[n : n + len(ids)] == ids)
    after = len(whole) - before - len(ids)
    return whole, [False] * before + targets + [False] * after


def _end(ids: list[int], targets: list[bool], last: Segment, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Close a row of plain text with EOS, trained as the text before it, unless it is there already."""
    if last.templated:
        return
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(end_id(tokenizer))
        targets.append(last.is_target)
    targets[-1] = last.is_target


def _cut(ids: list[int], targets: list[bool], max_length: int) -> Tokenized:
    example = Example(
        np.array(ids[:max_length], dtype=np.int32), np.array(targets[:max_length], dtype=np.bool_)
    )
    example.is_target[:1] = False
    return Tokenized(example, num_cut=max(0, len(ids) - max_length))
