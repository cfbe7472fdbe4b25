"""Text segments -> token ids with their loss mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np

from megatune.data.examples import Examples, Mask
from megatune.errors import DataError
from megatune.tasks import RenderChat, RowError, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def tokenize(rows: Sequence[list[Segment]], tokenizer: "PreTrainedTokenizerBase", limit: Limit) -> Examples:
    """The examples of rows of segments: one, several of a row that is divided, none of one without segments.

    The text of a row is tokenised as a whole, as the model will meet it: tokenised piece by piece,
    " Paris" after "is" becomes other tokens than "is Paris". A token belongs to the segment of its
    last character, from the offsets of a fast tokenizer. A slow tokenizer has no offsets, so there,
    and only there, the segments are tokenised one by one.
    BOS is added as the tokenizer does to plain text, EOS at the end, trained like the text before
    it; neither where the chat template wrote the text, because it has written its own.
    """
    places = [at for at, row in enumerate(rows) if row]
    texts = [row for row in rows if row]
    ids, targets, lengths = (_fast if tokenizer.is_fast else _piece_by_piece)(texts, tokenizer)
    whole = Examples(
        input_ids=np.array(ids, dtype=np.int32),
        is_target=targets,
        lengths=np.array(lengths, dtype=np.int64),
        rows=np.array(places, dtype=np.int64),
        num_cut=np.zeros(len(places), dtype=np.int64),
    )
    # Asked once: transformers looks special tokens up anew each time, which takes as long as a short row.
    found = _fitted(_ended(whole, texts, end_id(tokenizer)), limit, tokenizer.bos_token_id)
    first = (np.cumsum(found.lengths) - found.lengths)[found.lengths > 0]
    found.is_target[first] = False
    return found


_Rows = Sequence[list[Segment]]
_Encoded = tuple[list[int], Mask, list[int]]
"""The ids of all rows, which of them are learned, and how many each row has."""


def _fast(rows: _Rows, tokenizer: "PreTrainedTokenizerBase") -> _Encoded:
    """By the library below the tokenizer: what transformers puts on top takes longer than the tokens."""
    library: Any = tokenizer.backend_tokenizer
    library.no_truncation()
    library.no_padding()
    alike = [len(row) == 1 or len({segment.is_target for segment in row}) == 1 for row in rows]
    ids: list[int] = []
    special: list[int] = []
    lengths: list[int] = []
    offsets: dict[int, list[tuple[int, int]]] = {}
    # Lists of the library become arrays slowly: this one only where there can be something in it.
    adds_tokens = library.num_special_tokens_to_add(False) > 0
    for at, encoding in enumerate(_encodings(library, rows, alike)):
        found = encoding.ids
        ids += found
        lengths.append(len(found))
        if adds_tokens:
            special += [0] * len(found) if rows[at][0].templated else encoding.special_tokens_mask
        if not alike[at]:
            offsets[at] = encoding.offsets
    targets = np.repeat(np.array([row[0].is_target for row in rows], dtype=np.bool_), lengths)
    stops = np.cumsum(lengths)
    for at, pairs in offsets.items():
        targets[stops[at] - lengths[at] : stops[at]] = _targets(rows[at], pairs)
    if adds_tokens:
        targets &= ~np.array(special, dtype=np.bool_)
    return ids, targets, lengths


def _encodings(library: Any, rows: _Rows, alike: list[bool]) -> list[Any]:
    """The library's encoding of each row."""
    found: list[Any] = [None] * len(rows)
    kinds = [(row[0].templated, same) for row, same in zip(rows, alike, strict=True)]
    for templated, same in set(kinds):
        chosen = [at for at, kind in enumerate(kinds) if kind == (templated, same)]
        texts = ["".join([segment.text for segment in rows[at]]) for at in chosen]
        # Where all of a row is alike no offsets are needed, and without them it goes faster.
        encode = library.encode_batch_fast if same else library.encode_batch
        for at, encoding in zip(chosen, encode(texts, add_special_tokens=not templated), strict=True):
            found[at] = encoding
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


def _piece_by_piece(rows: _Rows, tokenizer: "PreTrainedTokenizerBase") -> _Encoded:
    ids: list[int] = []
    targets: list[bool] = []
    lengths: list[int] = []
    for row in rows:
        found, learned = _pieces(row, tokenizer)
        ids += found
        targets += learned
        lengths.append(len(found))
    return ids, np.array(targets, dtype=np.bool_), lengths


def _pieces(row: list[Segment], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    targets: list[bool] = []
    for segment in row:
        piece: list[int] = tokenizer.encode(segment.text, add_special_tokens=False, verbose=False)
        ids += piece
        targets += [segment.is_target] * len(piece)
    if row[0].templated:
        return ids, targets
    whole: list[int] = list(tokenizer.build_inputs_with_special_tokens(ids))
    before = next(n for n in range(len(whole)) if whole[n : n + len(ids)] == ids)
    after = len(whole) - before - len(ids)
    return whole, [False] * before + targets + [False] * after


def _ended(whole: Examples, rows: _Rows, eos: int) -> Examples:
    """Rows of plain text closed with EOS, trained as the text before it, unless it is there already."""
    closes = np.array([not row[-1].templated for row in rows], dtype=np.bool_)
    stops = np.cumsum(whole.lengths)
    lacks = closes.copy()
    some = whole.lengths > 0
    lacks[some] &= whole.input_ids[stops[some] - 1] != eos
    lengths = whole.lengths + lacks
    ids = np.insert(whole.input_ids, stops[lacks], eos)
    targets = np.insert(whole.is_target, stops[lacks], False)
    learns = np.array([row[-1].is_target for row in rows], dtype=np.bool_)
    targets[np.cumsum(lengths)[closes] - 1] = learns[closes]
    return replace(whole, input_ids=ids, is_target=targets, lengths=lengths)


def _fitted(whole: Examples, limit: Limit, bos_id: object) -> Examples:
    """The examples of rows that may be too long.

    What is cut at the left is the text: BOS stays in front of what is left.
    """
    is_long = whole.lengths > limit.max_length
    if not is_long.any():
        return whole
    starts = np.cumsum(whole.lengths) - whole.lengths
    short = np.stack((whole.rows, starts, whole.lengths, whole.num_cut))[:, ~is_long]
    long = [
        (int(whole.rows[at]), *piece)
        for at in np.flatnonzero(is_long)
        for piece in _divided(whole, int(starts[at]), int(whole.lengths[at]), limit, bos_id)
    ]
    pieces = np.concatenate((short, np.array(long, dtype=np.int64).T), axis=1)
    rows, starts, lengths, num_cut = pieces[:, np.argsort(pieces[0], kind="stable")]
    return whole.cut(starts, lengths, rows, num_cut)


def _divided(
    whole: Examples, start: int, length: int, limit: Limit, bos_id: object
) -> list[tuple[int, int, int]]:
    """(start, length, tokens cut) of the examples of the row at `start`; may put a BOS where one begins."""
    most = limit.max_length
    if limit.long_rows == "drop":
        return [(start, 0, length)]
    has_bos = bool(whole.input_ids[start] == bos_id)
    if limit.long_rows == "chunk" and whole.is_target[start + has_bos : start + length].all():
        return [(start + at, min(most, length - at), 0) for at in range(0, length, most)]
    if limit.side == "right":
        return [(start, most, length - most)]
    kept = start + length - most
    if has_bos:
        whole.input_ids[kept] = whole.input_ids[start]
    return [(kept, most, length - most)]
