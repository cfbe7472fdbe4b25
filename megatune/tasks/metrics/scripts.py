"""Which writing a text is in, as far as metrics that cut texts into words care."""

import re
from collections.abc import Sequence

_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana and ideographs: no blanks stand between their words."""
_LATIN = re.compile("[a-z0-9]")


def num_without_latin(texts: Sequence[str], *, share: float = 0.2) -> int:
    """Texts of whose letters and digits fewer than `share` are a to z or 0 to 9, whatever their case.

    >>> num_without_latin(["a cat", "\u0441\u043e\u0431\u0430\u043a\u0430 5", "?"])
    1
    """
    return sum(_share(_LATIN, text.lower()) < share for text in texts if _num_letters(text))


def num_without_blanks(texts: Sequence[str]) -> int:
    """Texts that are for the most part in a writing without blanks between words."""
    return sum(_share(_WITHOUT_BLANKS, text) > 0.5 for text in texts if _num_letters(text))


def _share(kind: re.Pattern[str], text: str) -> float:
    return len(kind.findall(text)) / _num_letters(text)


def _num_letters(text: str) -> int:
    return sum(character.isalnum() for character in text)
