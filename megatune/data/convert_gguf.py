"""A GGUF file -> a plain Hugging Face folder that can be trained, saved and loaded like any other."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megatune.data.space import full_disk_named
from megatune.errors import DataError, ModelError
from megatune.files import sync_folder

_MAX_SHARD = "5GB"


def convert_gguf(gguf_file: Path, folder: Path) -> Path:
    """Write config, fp32 safetensors and tokenizer (with its chat template) of `gguf_file` to `folder`.

    The weights are what the file's quantised blocks stand for, so the scores are not those of the
    original model. fp32, 4 bytes a parameter: what they dequantise to, without another rounding.
    A folder that is there is returned as it is: it got its name when it was complete.
    Raises DataError when there is no such file, it is no GGUF, or `folder` holds something else, and
    ModelError when transformers does not know the architecture.
    """
    if (folder / "config.json").exists():
        return folder
    _check_readable(gguf_file)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} holds other files and no model; name another folder, or empty that one")
    made = folder.with_name(f"{folder.name}.part")
    if made.exists():  # of a conversion that was killed
        shutil.rmtree(made)
    with full_disk_named("convert a model", folder.parent, fix="It takes 4 bytes a parameter; free some"):
        made.mkdir(parents=True)
        _write(gguf_file, made)
        sync_folder(made)
        made.rename(folder)
    return folder


def _check_readable(gguf_file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DataError("reading a GGUF file needs the package gguf: pip install 'megatune[demo]'")
    if not gguf_file.is_file():
        raise DataError(f"{gguf_file} does not exist; fetch the model first")
    with gguf_file.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise DataError(f"{gguf_file} is not a GGUF file: it begins with {magic!r}, not with b'GGUF'")


def _write(gguf_file: Path, folder: Path) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf_file.parent),
        "gguf_file": gguf_file.name,
    }
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except ValueError as error:  # transformers' word for an architecture it cannot read from GGUF
        raise ModelError(f"transformers cannot load {gguf_file}: {error}") from error
    plain = _plain_copy(quantised, AutoConfig.from_pretrained(**source))
    plain.save_pretrained(folder, max_shard_size=_MAX_SHARD)
    tokenizer.save_pretrained(folder)


def _plain_copy(quantised: Any, config: Any) -> Any:
    """The same weights in a model that does not count as quantised, which could not be saved."""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict(), strict=True)
    plain.tie_weights()
    return plain
