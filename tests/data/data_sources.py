"""Sources of rows, and preparing them, as short as tests want it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatune.data.prepare import Preparation, Settings
from megatune.data.read import find_files


@dataclass
class Source:
    paths: list[str]
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_samples: int | None = None


def preparation(paths: list[str] | list[Source], tokenizer: Any, folder: Path, **changed: Any) -> Preparation:
    """A preparation of the text of `paths` in rows of 64 tokens; `changed` are settings, or arguments."""
    sources = [path if isinstance(path, Source) else Source([str(path)]) for path in paths]
    settings = {"task": "text", "max_seq_length": 64, "seed": 1}
    arguments = {"split_name": "train", "tokenizer_name": "tiny", "num_workers": 1}
    for name, value in changed.items():
        (settings if name in Settings.__dataclass_fields__ else arguments)[name] = value
    return Preparation(
        sources=sources, tokenizer=tokenizer, folder=folder, settings=Settings(**settings), **arguments
    )


def rows_of(source: Source, scratch: Path, split_name: str = "train") -> list[Any]:
    """All rows of `source`, as one process reads them."""
    found = find_files(source, split_name=split_name, scratch=scratch)
    return [row for _, block in found.blocks() for row in block.rows()]
