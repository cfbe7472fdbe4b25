"""Where a model comes from: a local folder, or a hub id that is fetched into the local cache once."""

import json
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from megatune.errors import ModelError
from megatune.model.heads import HeadSpec, find_class
from megatune.plan.model_config import read_shape
from megatune.plan.shape import ModelShape

_WEIGHTS = "*.safetensors"
_FETCHED = ["*.json", _WEIGHTS, "*.model", "*.txt", "*.jinja", "*.py"]
_KEPT_SUFFIXES = {".json", ".model", ".txt", ".jinja", ".py", ".md"}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


GROWTH_FILE = "megatune-start.json"
"""In the folder of a model that begins with more tokens than its weights know; written by train/start_model.py."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A vocabulary that became larger than that of the stored weights."""

    weights: Path
    """Folder of the model as it was."""
    num_rows: int
    """Of the stored embedding."""
    num_known: int
    """Tokens that the weights know; the embeddings of the others begin at the mean of theirs."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model on this machine's disk, not loaded yet."""

    folder: Path
    shape: ModelShape
    config: PreTrainedConfig
    trust_remote_code: bool = False
    head: HeadSpec | None = None
    """A classifier head in place of the one over the vocabulary."""
    growth: "Growth | None" = None
    """Of the vocabulary, where the weights have fewer rows than `shape` says."""

    @property
    def weights_folder(self) -> Path:
        """The folder with the weights."""
        return self.folder if self.growth is None else self.growth.weights

    def config_dict(self) -> dict[str, Any]:
        """config.json with the defaults of its model type filled in."""
        filled: dict[str, Any] = self.config.to_dict()
        return filled

    def copy_without_weights(self, target: Path) -> None:
        """Copy what an exported folder needs beside the weights: configuration, tokenizer, remote code."""
        for path in sorted(self.folder.iterdir()):
            is_kept = path.suffix in _KEPT_SUFFIXES and path.name != GROWTH_FILE
            if path.is_file() and is_kept and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)
        _without_quantization(target / "config.json")
        if self.head is not None:
            self._write_head(target / "config.json")

    def _write_head(self, path: Path) -> None:
        """Say in a config.json that the model has this head, so that transformers loads it as such."""
        assert self.head is not None, "called where there is one"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("num_labels", None)
        config["architectures"] = [find_class(self.head, self.config).__name__]
        config |= self.head.settings()
        if config.get("text_config"):  # where transformers looks for a row's last token
            config["text_config"]["pad_token_id"] = self.head.pad_id
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _without_quantization(path: Path) -> None:
    """What is trained are plain weights, whatever the stored ones were; who loads them must not quantize them anew."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("quantization_config", None) is not None:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def resolve_model(
    name: str, *, key: str = "model.model_name_or_path", revision: str | None = None, weights: bool = True
) -> Path:
    """The local folder of `name`, fetching a hub id first. Raises ModelError when there is none.

    key: the entry of the run file that `name` stands in, for messages. weights: False leaves the
    .safetensors files on the hub; all else is fetched, for a tokenizer is not in .json files alone.

    Only one process of a machine should call this for a hub id: the launcher does, before the ranks start.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"{key}: there is no folder {name}.{_near(folder)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [pattern for pattern in _FETCHED if weights or pattern != _WEIGHTS]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{key}: {name} is no folder here, and the Hugging Face hub did not give it: {reason} "
            "Give the path of a folder, or fetch it where there is a network."
        ) from error


def open_source(folder: Path, *, trust_remote_code: bool = False) -> ModelSource:
    """Read the configuration of a model folder. Raises ModelError; reads no weights."""
    shape = read_shape(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        if "trust_remote_code" in str(error):
            code = ", ".join(sorted(path.name for path in folder.glob("*.py"))) or "auto_map in config.json"
            raise ModelError(
                f"{folder} brings Python code of its own ({code}), which would run here. Read it, and where you trust "
                "it, set model.trust_remote_code=true; `megatune generate` takes --trust-remote-code."
            ) from error
        raise ModelError(f"transformers cannot read {folder / 'config.json'}: {error}") from error
    return ModelSource(
        folder=folder,
        shape=shape,
        config=config,
        trust_remote_code=trust_remote_code,
        growth=_read_growth(folder / GROWTH_FILE),
    )


def _read_growth(path: Path) -> Growth | None:
    if not path.is_file():
        return None
    try:
        growth = json.loads(path.read_text(encoding="utf-8"))["growth"]
        if growth is None:
            return None
        return Growth(
            weights=Path(growth["weights"]), num_rows=growth["num_rows"], num_known=growth["num_known"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}. Delete {path.parent} and start again.") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype most weights of the folder's safetensors files have.

    Loading in that dtype leaves the weights in the memory-mapped files; any other dtype copies
    all of them on every rank. Raises ModelError when there are no safetensors weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = sorted(path.name for path in folder.glob("*.bin")) or ["no weights at all"]
        raise ModelError(
            f"{folder} holds no .safetensors weights (found: {', '.join(found[:3])}). Pickled weights can run code "
            "when they are loaded and are refused; convert them once with transformers' save_pretrained, or use "
            "model.initialize=random to start without weights."
        )
    counts = Counter(dtype for path in files for dtype in _header_dtypes(path))
    known = [dtype for dtype, _ in counts.most_common() if dtype in _DTYPES]
    if not known:
        raise ModelError(
            f"{folder}: the weights have dtypes {sorted(counts)}; megatune trains {sorted(_DTYPES)}."
        )
    return _DTYPES[known[0]]


def _header_dtypes(path: Path) -> list[str]:
    """dtype of each tensor, from the file's JSON header (https://github.com/huggingface/safetensors#format)."""
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        header = file.read(header_bytes) if 0 < header_bytes < 2**27 else b""
    size = path.stat().st_size
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        dtypes = [str(entry["dtype"]) for entry in tensors]
        promised = 8 + header_bytes + max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:  # no JSON, or another one
        raise ModelError(f"{path} is not a whole safetensors file ({size} bytes).") from error
    if size != promised:
        raise ModelError(
            f"{path} is not a whole safetensors file: {size} bytes, where its header says {promised}."
        )
    return dtypes


def _near(folder: Path) -> str:
    parent = folder.expanduser().parent
    names = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    return f" Folders in {parent}: {', '.join(names[:8])}." if names else ""
