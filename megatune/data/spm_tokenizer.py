"""A SentencePiece model as a tokenizer that plain transformers loads.

transformers can read a `.model` only where it knows whose it is. What is written here says by itself how
it encodes: the same ids as SentencePiece's own, which a test holds for both kinds of model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE = "▁"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_UNIGRAM, _BPE = 1, 2
_SPECIAL_NAMES = ("unk", "bos", "eos", "pad")


def tokenizer_of(model: bytes, *, name: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a SentencePiece model. Raises ModelError, with `name`, when it is none.

    Nothing is put before or behind a text by it; megatune ends each example with EOS itself.
    """
    from transformers import PreTrainedTokenizerFast

    proto = _parsed(model, name)
    library = _library(proto, name)
    special = _special_tokens(proto)
    if "eos_token" not in special:
        raise ModelError(
            f"{name} has no end-of-sequence piece: a model could never learn to stop. Train it with one."
        )
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    others = [piece for piece in control if piece not in special.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        additional_special_tokens=others,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _parsed(model: bytes, name: str) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ModelError(f"{name} is read with protobuf, which cannot be loaded: {error}") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ModelError(f"{name} is no SentencePiece model: {error}") from None
    if not proto.pieces or proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise ModelError(f"{name} is no SentencePiece model of type unigram or bpe")
    return proto


def _library(proto: Any, name: str) -> Any:
    """The tokenizer of the `tokenizers` library."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    if not normalizer.escape_whitespaces:
        raise ModelError(f"{name} keeps blanks as blanks (escape_whitespaces is off), which is not supported")
    user_defined = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    if spec.model_type == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        model: Any = models.Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    else:
        vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
        model = models.BPE(
            vocabulary,
            _merges(proto.pieces),
            unk_token=spec.unk_piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
            ignore_merges=bool(user_defined),  # they are put together of nothing
        )
    library = Tokenizer(model)
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", _SPACE))
    if normalizer.add_dummy_prefix:
        # Not by Metaspace, which leaves out the prefix where the text begins with a blank.
        steps.append(normalizers.Replace(Regex(r"\A(?=[\s\S])"), _SPACE))
    library.normalizer = normalizers.Sequence(steps)
    if user_defined:
        longest_first = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), behavior="isolated")
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if normalizer.add_dummy_prefix:
        undo.append(decoders.Strip(content=" ", left=1))
    library.decoder = decoders.Sequence(undo)
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    return library


def _merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """Which two pieces each piece is put together of: SentencePiece keeps an order of results only."""
    ranks = {
        piece.piece: (-piece.score, number) for number, piece in enumerate(pieces) if piece.type == _NORMAL
    }
    ranked = [
        (rank, piece[:cut], piece[cut:])
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    return [(left, right) for _, left, right in sorted(ranked)]


def _special_tokens(proto: Any) -> dict[str, str]:
    """Those that the model has, by the names of transformers."""
    spec = proto.trainer_spec
    found = {}
    for name in _SPECIAL_NAMES:
        number = getattr(spec, f"{name}_id")
        if 0 <= number < len(proto.pieces):
            found[f"{name}_token"] = proto.pieces[number].piece
    return found
