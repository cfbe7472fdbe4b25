"""Heavy imports without the garbage collector.

Importing torch, transformers and DeepSpeed makes 700,000 objects, nearly all of which stay. The collector would go
through them again and again meanwhile: a second of processor time of five, in every process.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected while the block runs, and what stands at its end is never looked at again.

    What a block leaves as garbage stays, too: some 10,000 objects for all imports of a rank.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
