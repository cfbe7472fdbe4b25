"""A name for prepared data that changes whenever what it was made from changes, and what it was that changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import xxhash

from megatune.data.hash_memo import HashMemo
from megatune.data.opened import plain_suffix
from megatune.data.read import Source, files_of, is_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class MadeFrom:
    """All that decides what is in a prepared set."""

    files: tuple[tuple[str, str], ...]
    """Path and hash of each, in the order in which they are read. A data set of the hub enters by its id,
    not by its content, so that a node without a network can use what was prepared elsewhere: pin
    `owner/name@revision` where it may change."""
    settings: Mapping[str, object]
    """By their names in the run file, and the tokenizer by a hash."""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits. Where the files lie is no part of it."""
        files = [(plain_suffix(Path(path)), found) for path, found in self.files]
        return xxhash.xxh3_128_hexdigest(json.dumps([files, dict(self.settings)], sort_keys=True).encode())

    def as_fields(self) -> dict[str, Any]:
        """For a manifest."""
        return {"files": [list(entry) for entry in self.files], "settings": dict(self.settings)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """What `as_fields` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(files=tuple((path, found) for path, found in fields["files"]), settings=fields["settings"])


def file_hashes(sources: Sequence[Source], memo: HashMemo, *, split_name: str) -> list[tuple[str, str]]:
    """Path and hash of all files of `sources`. Reads those that `memo` does not know."""
    return [
        entry
        for source in sources
        for path in source.paths
        for entry in _identities(path, source, memo, split_name)
    ]


def made_from(
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    settings: Mapping[str, object],
    memo: HashMemo,
    *,
    split_name: str,
) -> MadeFrom:
    """What a set of `sources` would be made from. Reads all files that `memo` does not know, to hash them."""
    files: list[tuple[str, str]] = []
    described = []
    for source in sources:
        found = file_hashes([source], memo, split_name=split_name)
        files += found
        described.append(
            {
                "num_files": len(found),
                "columns": dict(source.columns),
                "split": source.split or split_name,
                "max_samples": source.max_samples,
            }
        )
    named = {"tokenizer": tokenizer_identity(tokenizer), f"data.{split_name}": described}
    # As JSON gives it back: it is compared with what a manifest holds.
    return MadeFrom(files=tuple(files), settings=json.loads(json.dumps({**settings, **named})))


def changes(before: MadeFrom, now: MadeFrom) -> list[str]:
    """What differs, in words; the files first."""
    old, new = dict(before.files), dict(now.files)
    found = [f"{path} was added" for path in new if path not in old]
    found += [f"{path} was taken out" for path in old if path not in new]
    found += [f"{path} changed" for path in new if path in old and old[path] != new[path]]
    if not found and before.files != now.files:
        found.append("the files come in another order")
    for name in {**before.settings, **now.settings}:
        then, today = before.settings.get(name), now.settings.get(name)
        if then != today:
            text = (
                "the tokenizer changed"
                if name == "tokenizer"
                else f"{name} was {_text(then)} and is {_text(today)}"
            )
            found.append(text)
    return found


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that decides which ids a text becomes, wherever the tokenizer was loaded from."""
    described = {
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
        "model": _backend_hash(tokenizer) if tokenizer.is_fast else _vocabulary(tokenizer),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())


def _backend_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the tokenizer.json of a fast tokenizer, without padding and truncation: whoever uses it sets them anew."""
    library: Any = tokenizer.backend_tokenizer
    library.no_padding()
    library.no_truncation()
    return xxhash.xxh3_128_hexdigest(library.to_str().encode())


def _vocabulary(tokenizer: "PreTrainedTokenizerBase") -> object:
    """What a slow tokenizer shows of itself; its name stands for the rules that it does not show."""
    return [tokenizer.name_or_path, tokenizer.get_vocab()]


def _identities(path: str, source: Source, memo: HashMemo, split_name: str) -> list[tuple[str, str]]:
    if not is_local(path):
        return [(path, "hub")]
    return [(str(file), memo.hash_of(file)) for file in files_of(path, source.split, split_name)]
