"""Text segments -> token ids with their loss mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
    labels: Ids | None = None
    """(length,), for a classifier head: see `labelled.py`. Then `is_target` counts losses and no more."""


@dataclass(frozen=True)
class Tokenized:
    """An example and how much of its row it had to leave out."""

    example: Example
    num_cut: int
    """Tokens of the row that are in no example."""


LongRows = Literal["truncate", "chunk", "drop"]
Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How long an example may be, and what becomes of a longer row."""

    max_length: int
    long_rows: LongRows = "truncate"
    """chunk: a row that is learned as a whole becomes several examples; others are truncated."""
    side: Side = "right"
    """The end that is cut off."""


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
    rows: Sequence[list[Segment]], tokenizer: "PreTrainedTokenizerBase", limit: Limit
) -> list[list[Tokenized]]:
    """The examples of each row of segments: one, several of a row that is divided, none of one without segments.

    The text of a row is tokenised as a whole, as the model will meet it: tokenised piece by piece,
    " Paris" after "is" becomes other tokens than "is Paris". A token belongs to the segment of its
    last character, from the offsets of a fast tokenizer. A slow tokenizer has no offsets, so there,
    and only there, the segments are tokenised one by one.
    BOS is added as the tokenizer does to plain text, EOS at the end, trained like the text before
    it; neither where the chat template wrote the text, because it has written its own.
    """
    encoded = _fast if tokenizer.is_fast else _piece_by_piece
    # Asked once: transformers looks special tokens up anew each time, which takes as long as a short row.
    eos, bos_id = np.array([end_id(tokenizer)], dtype=np.int32), tokenizer.bos_token_id
    found: list[list[Tokenized]] = [[] for _ in rows]
    for plain in (True, False):
        chosen = [i for i, row in enumerate(rows) if row and row[0].templated is not plain]
        batch = [rows[i] for i in chosen]
        for i, (ids, targets) in zip(chosen, encoded(batch, tokenizer, plain), strict=True):
            found[i] = _fitted(*_ended(ids, targets, rows[i][-1], eos), limit, bos_id)
    return found


_Encoded = tuple[Ids, Mask]


def _fast(
    rows: list[list[Segment]], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> Iterator[_Encoded]:
    """By the library below the tokenizer: what transformers puts on top takes longer than the tokens."""
    library: Any = tokenizer.backend_tokenizer
    library.no_truncation()
    library.no_padding()
    texts = ["".join(segment.text for segment in row) for row in rows]
    whole = [row[0].is_target if len({segment.is_target for segment in row}) == 1 else None for row in rows]
    # Where all of a row is alike no offsets are needed, and without them it goes faster.
    simple = iter(_encodings(library, texts, whole, add_special_tokens, needs_offsets=False))
    mixed = iter(_encodings(library, texts, whole, add_special_tokens, needs_offsets=True))
    # Lists of the library become arrays slowly: this one only where there can be something in it.
    adds_tokens = add_special_tokens and library.num_special_tokens_to_add(False) > 0
    for row, is_target in zip(rows, whole, strict=True):
        encoding = next(mixed if is_target is None else simple)
        ids = np.array(encoding.ids, dtype=np.int32)
        targets = np.full(len(ids), is_target) if is_target is not None else _targets(row, encoding.offsets)
        if adds_tokens:
            targets &= ~np.array(encoding.special_tokens_mask, dtype=np.bool_)
        yield ids, targets


def _encodings(
    library: Any, texts: list[str], whole: list[bool | None], add_special_tokens: bool, *, needs_offsets: bool
) -> list[Any]:
    encode = library.encode_batch if needs_offsets else library.encode_batch_fast
    chosen = [text for text, alike in zip(texts, whole, strict=True) if (alike is None) is needs_offsets]
    found: list[Any] = encode(chosen, add_special_tokens=add_special_tokens) if chosen else []
    return found


def _targets(row: list[Segment], offsets: list[tuple[int, int]]) -> Mask:
    """Whether each token's last character lies in a target segment.

    The last character, because a byte-level tokenizer may leave the blank before a word out of its
    offsets: a token that is nothing but such a blank has the offsets (end, end).
    """
    ends = np.cumsum([len(segment.text) for segment in row])
    last = np.array([max(end - 1, 0) for _, end in offsets], dtype=np.int64)
    segment_of = np.minimum(np.searchsorted(ends, last, side="right"), len(row) - 1)
    found: Mask = np.array([segment.is_target for segment in row])[segment_of]
    return found


def _piece_by_piece(
    rows: list[list[Segment]], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> Iterator[_Encoded]:
    for row in rows:
        ids, targets = _pieces(row, tokenizer, add_special_tokens)
        yield np.array(ids, dtype=np.int32), np.array(targets, dtype=np.bool_)


def _pieces(
    row: list[Segment], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> tuple[list[int], list[bool]]:
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


_ONE_MORE = np.zeros(1, dtype=np.bool_)


def _ended(ids: Ids, targets: Mask, last: Segment, eos: Ids) -> _Encoded:
    """A row of plain text closed with EOS, trained as the text before it, unless it is there already."""
    if last.templated:
        return ids, targets
    if not len(ids) or ids[-1] != eos[0]:
        ids, targets = np.concatenate((ids, eos)), np.concatenate((targets, _ONE_MORE))
    targets[-1] = last.is_target
    return ids, targets


def _fitted(ids: Ids, targets: Mask, limit: Limit, bos_id: object) -> list[Tokenized]:
    """The examples of a row. What is cut at the left is the text: BOS stays in front of what is left."""
    too_many = len(ids) - limit.max_length
    if too_many <= 0:
        return [_example(ids, targets, 0)]
    if limit.long_rows == "drop":
        return [Tokenized(Example(ids[:0], targets[:0]), num_cut=len(ids))]
    has_bos = bool(ids[0] == bos_id)
    if limit.long_rows == "chunk" and targets[has_bos:].all():
        starts = range(0, len(ids), limit.max_length)
        pieces = [slice(start, start + limit.max_length) for start in starts]
        return [_example(ids[piece], targets[piece], 0) for piece in pieces]
    if limit.side == "right":
        return [_example(ids[: limit.max_length], targets[: limit.max_length], too_many)]
    kept = np.r_[0:has_bos, too_many + has_bos : len(ids)]
    return [_example(ids[kept], targets[kept], too_many)]


def _example(ids: Ids, targets: Mask, num_cut: int) -> Tokenized:
    targets = targets.copy()  # pieces of one row are views of it
    targets[:1] = False
    return Tokenized(Example(ids, targets), num_cut)
