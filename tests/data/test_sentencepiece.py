"""SentencePiece models that are trained here, or that exist, encode as SentencePiece does."""

import io
import json
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatune.data.spm_tokenizer import tokenizer_of
from megatune.data.spm_train import MAX_SENTENCE_BYTES, SpmSettings, train_sentencepiece
from megatune.errors import DataError, ModelError

KNOWN = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "over",
    "mat",
    "house",
    "été",
    "naïve",
    "東京",
    "is",
    "was",
]
SYLLABLES = ["ka", "lo", "mi", "tur", "resh", "an", "be", "ou"]
WORDS = [*KNOWN, *(a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[::3])]
TEXTS = [" ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(3, 12)) + "." for i in range(900)]
VOCABULARY = 380
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
LIKE_THE_CORPUS = st.lists(st.sampled_from([*WORDS, " ", "\n", "x", "<s>", "</s>x"]), max_size=12).map(
    "".join
)


@cache
def trained(model_type, **options):
    return train_sentencepiece(TEXTS, SpmSettings(vocab_size=VOCABULARY, model_type=model_type, **options))


@cache
def of_somebody(model_type):
    """A model with SentencePiece's own defaults: normalised text, extra blanks removed, no byte fallback."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        vocab_size=200,
        model_type=model_type,
        hard_vocab_limit=False,
        user_defined_symbols=["<sep>", "cat"],
        minloglevel=2,
    )
    return written.getvalue()


@cache
def both(model_type, kind):
    model = trained(model_type) if kind == "trained" else of_somebody(model_type)
    return sentencepiece.SentencePieceProcessor(model_proto=model), tokenizer_of(model, name="it")


def score(model, ids):
    return sum(model.get_score(token) for token in ids)


@pytest.mark.parametrize("kind", ["trained", "somebody's"])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@settings(deadline=None, max_examples=150)
@given(text=st.one_of(ANY, LIKE_THE_CORPUS))
def test_the_ids_are_those_of_sentencepiece(model_type, kind, text):
    reference, tokenizer = both(model_type, kind)
    for special in ("<s>", "</s>", "<pad>", "<unk>"):
        text = text.replace(special, "")  # transformers takes them for the special tokens they name
    ids, expected = tokenizer(text).input_ids, reference.encode(text)
    if ids != expected:  # of divisions that are equally likely each may choose another
        assert model_type == "unigram"
        assert score(reference, ids) == pytest.approx(score(reference, expected), abs=1e-3)
        assert reference.decode(ids) == reference.decode(expected)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@settings(deadline=None, max_examples=100)
@given(text=ANY)
def test_text_comes_back_as_it_went_in(model_type, text):
    _, tokenizer = both(model_type, "trained")
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_plain_transformers_loads_the_folder(tmp_path):
    tokenizer_of(trained("unigram"), name="it").save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the cat sat").input_ids == both("unigram", "trained")[0].encode("the cat sat")
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token, loaded.pad_token) == (
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
    )
    assert len(loaded) == VOCABULARY


def test_special_tokens_have_one_id_each():
    tokenizer = tokenizer_of(trained("bpe", special_tokens=("<|user|>",)), name="it")
    assert len(tokenizer("<|user|>").input_ids) == 1
    assert (
        tokenizer.decode(tokenizer("<|user|> the cat").input_ids, skip_special_tokens=True).strip()
        == "the cat"
    )


def test_equal_texts_make_equal_models():
    again = train_sentencepiece(iter(TEXTS), SpmSettings(vocab_size=VOCABULARY))
    assert again == trained("unigram")


def test_long_lines_are_learned_from():
    line = "zyx " * MAX_SENTENCE_BYTES
    model = train_sentencepiece([line, *TEXTS], SpmSettings(vocab_size=VOCABULARY))
    assert tokenizer_of(model, name="it").tokenize("zy") == ["▁", "z", "y"]  # and not bytes


@pytest.mark.parametrize(
    ("texts", "vocab_size", "problem"),
    [
        ([], 400, "no tokenizer can be trained: data.train holds no text"),
        (["a b"], 400, r"cannot make 400 pieces of 1 lines of text: .*tokenizer\.vocab_size"),
        (TEXTS, 50, r"cannot make 50 pieces of 900 lines of text: "),
    ],
)
def test_a_vocabulary_that_cannot_be_made_is_refused_with_the_reason(texts, vocab_size, problem):
    with pytest.raises(DataError, match=problem):
        train_sentencepiece(texts, SpmSettings(vocab_size=vocab_size))


@pytest.mark.parametrize("data", [b"", b"not a model", json.dumps({"model": 1}).encode()])
def test_a_file_that_is_no_model_is_named(data):
    with pytest.raises(ModelError, match=r"x\.model is no SentencePiece model"):
        tokenizer_of(data, name="x.model")
