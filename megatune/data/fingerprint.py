"""A name for prepared data that changes whenever what it was made from changes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from megatune.data.read import Source
from megatune.files import hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fingerprint(
    source: Source, tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, object], *, split_name: str
) -> str:
    """32 hexadecimal digits over the bytes of the data, the tokenizer and `settings`.

    A data set of the hub enters by its id and split, not by its content, so that a node without a
    network can use what was prepared elsewhere: pin `owner/name@revision` where it may change.
    """
    described = {
        "paths": [_path_identity(path) for path in source.paths],
        "split": source.split or split_name,
        "columns": dict(source.columns),
        "tokenizer": tokenizer_identity(tokenizer),
        "settings": dict(settings),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that decides which ids a text becomes, wherever the tokenizer was loaded from."""
    described = {
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
        "model": _backend(tokenizer) if tokenizer.is_fast else _vocabulary(tokenizer),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())


def _backend(tokenizer: "PreTrainedTokenizerBase") -> object:
    """The tokenizer.json of a fast tokenizer, but for padding and truncation: using it sets them."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in backend.items() if key not in ("padding", "truncation")}


def _vocabulary(tokenizer: "PreTrainedTokenizerBase") -> object:
    """What a slow tokenizer shows of itself; its name stands for the rules that it does not show."""
    return [tokenizer.name_or_path, tokenizer.get_vocab()]


def _path_identity(path: str) -> object:
    file = Path(path)
    if file.is_file():
        return [file.suffix, hash_file(file)]
    return [[str(inner.relative_to(file)), hash_file(inner)] for inner in _files(file)] or path


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(inner for inner in folder.rglob("*") if inner.is_file())
