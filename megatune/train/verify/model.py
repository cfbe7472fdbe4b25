"""The model that is verified: the run's own without dropout, or a shrunken one of the same family."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from megatune.config import Run
from megatune.errors import ModelError
from megatune.launch.devices import available_memory_bytes
from megatune.model.build import build_model
from megatune.model.heads import HeadSpec
from megatune.model.source import ModelSource
from megatune.plan.states import optimizer_bytes
from megatune.units import format_bytes, format_count

_SHRUNKEN_LAYERS = 2
_LARGEST_HIDDEN = 256
_SMALLEST_HEAD = 16
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# Widths that grow together with the hidden size; the names of the families of plan/families.py.
_WIDTHS = ("hidden_size", "n_embd", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "head_dim",
           "rotary_dim", "word_embed_proj_dim", "moe_intermediate_size", "shared_expert_intermediate_size")  # fmt: skip
_NOISE = 0.02
_HEAD_DROPOUT = "classifier_dropout"


def without_dropout(source: ModelSource, folder: Path) -> tuple[Path, list[str]]:
    """A model folder whose config.json has no dropout, and the names that were set to 0.

    Layouts draw other masks by design, so with dropout nothing could be compared. The weights are
    links to the original files; a model that has no dropout is used where it is.
    """
    config = copy.deepcopy(source.config)
    names = _switch_dropout_off(config) + _switch_head_dropout_off(config, source.head)
    if not names:
        return source.folder, []
    folder.mkdir()
    for path in source.folder.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(os.path.realpath(path))
    config.save_pretrained(folder)
    return folder, names


def _is_random(name: str) -> bool:
    return "drop" in name or name.endswith("jitter_noise")  # the latter of experts' routers


def _switch_dropout_off(config: PreTrainedConfig) -> list[str]:
    names = []
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            names += _switch_dropout_off(value)
        elif _is_random(name) and isinstance(value, float | int) and not isinstance(value, bool) and value:
            names.append(name)
    for name in names:
        if name in vars(config):
            setattr(config, name, 0.0)
    return names


def _switch_head_dropout_off(config: PreTrainedConfig, head: HeadSpec | None) -> list[str]:
    """Heads for words drop out as other entries say, or a tenth where no entry says anything."""
    if head is None or head.kind != "ner" or getattr(config, _HEAD_DROPOUT, None) == 0:
        return []
    setattr(config, _HEAD_DROPOUT, 0.0)
    return [_HEAD_DROPOUT]


def shrink(source: ModelSource, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int) -> list[str]:
    """Write a small random model of the same family to `folder`; returns what was shrunk, in words.

    The weights are moved off their initial values: biases of 0 and norms of 1 would hide a shard that
    lies in the wrong place. Raises ModelError when the family cannot be built in another size.
    """
    config, changes = shrunken_config(source, num_tokens=_largest_id(tokenizer) + 1)
    _switch_dropout_off(config)
    _switch_head_dropout_off(config, source.head)
    folder.mkdir()
    source.copy_without_weights(folder)
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=source.trust_remote_code
            )
    except (ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"a {source.shape.model_type} model cannot be built in a smaller size: {error}. "
            "Leave --shrink out."
        ) from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_NOISE)
    model.save_pretrained(folder)
    return changes


def shrunken_config(source: ModelSource, *, num_tokens: int) -> tuple[PreTrainedConfig, list[str]]:
    """The config with two layers, smaller widths and equally many heads, and what changed, in words.

    num_tokens: ids below it are in the data, so the vocabulary stays at least as large.
    """
    whole = source.config_dict()
    filled = whole.get("text_config") or whole
    changed: dict[str, Any] = {name: _SHRUNKEN_LAYERS for name in _LAYERS if _is_count(filled.get(name))}
    changed |= _per_layer(filled, source.shape.num_layers)
    factor = _factor(source)
    if factor > 1:
        changed |= {name: -(-filled[name] // factor) for name in _WIDTHS if _is_count(filled.get(name))}
    special = [
        value for name, value in filled.items() if name.endswith("_token_id") and isinstance(value, int)
    ]
    changed["vocab_size"] = min(filled["vocab_size"], max([num_tokens - 1, *special]) + 1)
    changed = {name: value for name, value in changed.items() if filled.get(name) != value}
    words = [_in_words(name, filled[name], value) for name, value in changed.items()]
    small = {**filled, **changed}
    if filled is not whole:
        towers = _short_towers(whole)
        words += [f"{name}: {_SHRUNKEN_LAYERS} layers" for name in towers]
        small = {**whole, **towers, "text_config": small}
    return type(source.config).from_dict(small), words


def _short_towers(whole: dict[str, Any]) -> dict[str, Any]:
    """The configurations of towers for images and sound, with as few layers as the language model."""
    return {
        key: {**section, name: _SHRUNKEN_LAYERS}
        for key, section in whole.items()
        if key != "text_config" and isinstance(section, dict)
        for name in _LAYERS
        if _is_count(section.get(name)) and section[name] > _SHRUNKEN_LAYERS
    }


def _in_words(name: str, before: Any, after: Any) -> str:
    return name if isinstance(after, list) else f"{name} {before} -> {after}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _factor(source: ModelSource) -> int:
    """What all widths are divided by, a power of two: until the hidden size is small, in whole even heads."""
    shape, factor = source.shape, 1
    # Scaled rotary embeddings may list one number for every second element of a head.
    text = source.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if any(isinstance(value, list) for value in rope.values()):
        return 1
    while (
        shape.hidden_size // factor > _LARGEST_HIDDEN
        and shape.hidden_size % (2 * factor) == 0
        and shape.head_size % (4 * factor) == 0
        and shape.head_size // (2 * factor) >= _SMALLEST_HEAD
    ):
        factor *= 2
    return factor


def _per_layer(filled: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Lists with one entry a layer, cut to the layers that are left; GPT-Neo writes its own as a product."""
    found = {
        name: value[:_SHRUNKEN_LAYERS]
        for name, value in filled.items()
        if isinstance(value, list) and len(value) == num_layers and num_layers > _SHRUNKEN_LAYERS
    }
    if "attention_types" in filled and "attention_layers" in filled:
        kinds = filled["attention_layers"][:_SHRUNKEN_LAYERS]
        found |= {"attention_layers": kinds, "attention_types": [[[kind], 1] for kind in kinds]}
    return found


def _largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values())


def refuse_too_large(run: Run, source: ModelSource, device: torch.device) -> None:
    """Raise ModelError when the reference, which holds the whole model on one device, does not fit it."""
    num_params = count_params(source)
    needed = num_params * bytes_per_param(run)
    available = _available_bytes(device)
    if available is not None and needed > available:
        place = "this machine's memory" if device.type == "cpu" else f"one {device.type} device"
        raise ModelError(
            f"the reference trains the whole model in one process: {format_count(num_params)} parameters x "
            f"{bytes_per_param(run)} bytes (weights, gradients, optimizer) = {format_bytes(needed)}, and "
            f"{place} has {format_bytes(available)} free. Use --shrink, which verifies a two-layer model "
            "of the same family, or a machine with more memory."
        )


def bytes_per_param(run: Run) -> int:
    """What the reference holds a parameter: weight and gradient, fp32 copies of both, optimizer states.

    16 in fp32 with Adam (4 + 4 + 8), 20 in bf16 (2 + 2 + 4 + 4 + 8).
    """
    beside_masters = 8 if run.precision == "bf16" else 4
    return beside_masters + optimizer_bytes(run.train.optimizer, momentum=run.train.momentum)


def count_params(source: ModelSource) -> int:
    """Parameters of the model, tied ones once; allocates none of them."""
    return build_model(source, dtype=torch.float32, initialize="empty").num_params


def _available_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    return available_memory_bytes()
