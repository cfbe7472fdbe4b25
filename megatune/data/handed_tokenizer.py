"""A tokenizer on its way to a worker, which makes all of it only where it needs more than ids of text.

The classes of transformers take half a second of a processor to import, as long as a worker takes for
two megabytes; the library below them a hundredth of that.
"""

import pickle
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def handed(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """What to pickle for a worker in the place of `tokenizer`."""
    return cast("PreTrainedTokenizerBase", _Handed(tokenizer)) if tokenizer.is_fast else tokenizer


class _Handed:
    """Has what ids of text need; whatever else is asked of it, a chat template say, the whole one does."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._pickled = pickle.dumps(tokenizer)
        self.is_fast = True
        self.backend_tokenizer: Any = tokenizer.backend_tokenizer
        self.chat_template = tokenizer.chat_template
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.unk_token_id = tokenizer.unk_token_id

    @cached_property
    def _whole(self) -> "PreTrainedTokenizerBase":
        found: PreTrainedTokenizerBase = pickle.loads(self._pickled)  # from who started this process
        return found

    def __getattr__(self, name: str) -> Any:
        """What the whole tokenizer has. Nothing of its own inside: pickle asks for that before there is any."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Tokens of a text, and where they lie in it."""
        return self._whole(*args, **options)
