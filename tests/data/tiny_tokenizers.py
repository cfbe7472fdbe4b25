"""Tokenizers made on the spot: byte-level BPE as GPT-2 has, one that adds BOS as Llama does, a slow one."""

import os

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{{ m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "The capital of France is Paris.",
    "2 + 2 = 4",
    "Once upon a time there was a user",
    "assistant",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]


def byte_level(vocab_size: int, *, trim_offsets: bool = True) -> Tokenizer:
    """Byte-level BPE; 259 entries are the bytes and the special tokens, with no merges at all."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=SPECIAL)
    made.train_from_iterator(CORPUS, trainer)
    return made


def fast(made: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


class CharTokenizer(PreTrainedTokenizer):
    """A tokenizer in pure Python: one id a character, no offsets, BOS before every text."""

    def __init__(self, **special: str) -> None:
        self.known = ["<s>", "</s>", "<unk>", *map(chr, range(10, 127))]
        super().__init__(**{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special})

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.known)}

    def build_inputs_with_special_tokens(self, ids, _=None):
        return [self.bos_token_id, *ids]

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.known.index(token) if token in self.known else 2

    def _convert_id_to_token(self, index):
        return self.known[index]


class TalkingTokenizer(CharTokenizer):
    """One whose code prints on standard output, by Python and past it."""

    def _tokenize(self, text, **_):
        print("tokenising")
        os.write(1, b"a library in C\n")
        return list(text)
