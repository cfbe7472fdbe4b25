"""Learning rate and batch by rule: what published fine-tunings of language models of that size used.

All of them train every parameter with AdamW. Two lines through them, and nothing more: where to begin a search.
"""

import math
from dataclasses import dataclass

_RATE_AT_7B = 2e-5
_RATE_SLOPE = -0.29
_STEPS = 1000
_SMALLEST_BATCH, _LARGEST_BATCH = 8, 128


@dataclass(frozen=True, kw_only=True)
class Published:
    """A fine-tuning that its authors describe. None is not told."""

    name: str
    num_params: float
    learning_rate: float
    batch: int
    """Sequences in an optimizer step."""
    rows_seen: float | None
    """Rows times epochs."""
    source: str


PUBLISHED: tuple[Published, ...] = (
    Published(name="GPT", num_params=117e6, learning_rate=6.25e-5, batch=32, rows_seen=None,
              source="Radford et al. 2018, section 4.1"),
    Published(name="Alpaca 7B", num_params=6.7e9, learning_rate=2e-5, batch=128, rows_seen=3 * 52_002,
              source="tatsu-lab/stanford_alpaca, README"),
    Published(name="Alpaca 13B", num_params=13e9, learning_rate=1e-5, batch=128, rows_seen=5 * 52_002,
              source="tatsu-lab/stanford_alpaca, README"),
    Published(name="Llama 2 Chat (supervised)", num_params=7e9, learning_rate=2e-5, batch=64, rows_seen=2 * 27_540,
              source="arXiv:2307.09288, section 3.1"),
    Published(name="LIMA", num_params=65e9, learning_rate=1e-5, batch=32, rows_seen=15 * 1000,
              source="arXiv:2305.11206, section 3"),
    Published(name="Tulu 2 70B", num_params=70e9, learning_rate=1e-5, batch=128, rows_seen=None,
              source="arXiv:2311.10702, appendix B"),
)  # fmt: skip


def rate_by_rule(num_params: int) -> float:
    """A power law of the model's size; each of PUBLISHED lies within a factor of 1.8 of it.

    >>> f"{rate_by_rule(7_000_000_000):.1e}, {rate_by_rule(134_515_008):.1e}"
    '2.0e-05, 6.3e-05'
    """
    rate = _RATE_AT_7B * (num_params / 7e9) ** _RATE_SLOPE
    return float(f"{rate:.1e}")


def batch_by_rule(num_rows: int, epochs: float) -> int:
    """Sequences in a step: a power of two that makes about a thousand steps of the data, from 8 to 128.

    >>> batch_by_rule(27_540, 2)
    64
    """
    asked = max(1.0, num_rows * epochs / _STEPS)
    return min(_LARGEST_BATCH, max(_SMALLEST_BATCH, 1 << max(0, round(math.log2(asked)))))
