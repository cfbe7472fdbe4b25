"""The tokenizers of `tiny_tokenizers` as fixtures."""

import pytest
from tiny_tokenizers import CHAT_TEMPLATE, CharTokenizer, byte_level, fast
from tokenizers import processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def gpt2_like() -> PreTrainedTokenizerFast:
    """Adds nothing around a text; has a chat template; its padding token is its end token."""
    made = fast(byte_level(400))
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="session")
def llama_like() -> PreTrainedTokenizerFast:
    """Puts BOS before every text; has no chat template."""
    made = byte_level(400)
    bos = ("<s>", made.token_to_id("<s>"))
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    made.post_processor = processors.Sequence([made.post_processor, template])
    return fast(made, bos_token="<s>")


@pytest.fixture(scope="session")
def slow() -> CharTokenizer:
    return CharTokenizer()
