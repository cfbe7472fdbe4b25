"""Build a model: read it memory-mapped, cut it for tensor parallelism, hand it on block by block.

The weights stay in the mapped safetensors files until a block is cut and *placed* (cast and, under
ZeRO-3, partitioned by the engine), so a rank never holds much more than its own share plus one block.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from megatune.errors import ModelError
from megatune.model.collectives import TensorGroup
from megatune.model.conv1d import conv1d_to_linear
from megatune.model.document_masks import DocumentMasks
from megatune.model.heads import draw_head, find_class, find_head, head_parameters
from megatune.model.source import ModelSource, stored_dtype
from megatune.model.tensor_parallel import VocabularyHead, cut_block, cut_embedding, cut_vocabulary
from megatune.model.vocabulary import grow_vocabulary
from megatune.model.widened import widen
from megatune.plan.families import find_family
from megatune.plan.shape import ModelShape
from megatune.plan.shards import Cut

_HEAD_STD = 0.02  # for configurations that do not say how their weights were drawn


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model whose parameters are this rank's share, and how to put the whole together again."""

    model: PreTrainedModel
    source: ModelSource
    block_class: type[nn.Module]
    num_params: int
    """Parameters of the whole model, tied ones counted once."""
    num_matmul_params: int
    """Parameters of the blocks' weight matrices that multiply a token. The head is `num_head_params`."""
    num_head_params: int
    cuts: dict[str, Cut] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    """Weights to transpose back on export (GPT-2's Conv1D)."""
    unread: frozenset[str] = frozenset()
    """Parameters that text does not reach: of towers for images or sound, in models that read those too."""
    left_out: tuple[str, ...] = ()
    """Weights of the folder's files that its configuration has no place for."""

    @property
    def is_text_alone(self) -> bool:
        """Whether the class that transformers builds for this folder is its language model without the rest."""
        return self.source.head is None and type(self.model.config) is not type(self.source.config)

    @cached_property
    def masks(self) -> DocumentMasks:
        return DocumentMasks(self.model.config)

    @property
    def shape(self) -> ModelShape:
        return self.source.shape

    @property
    def head(self) -> nn.Module:
        if self.source.head is not None:
            return find_head(self.model)
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module), "checked by build_model"
        return head

    @property
    def first_token(self) -> int:
        """Vocabulary id of this rank's first logit."""
        if not isinstance(self.head, VocabularyHead):
            return 0
        group = self.head.group
        return self.head.vocabulary.ranges(group.rank, group.size)[0][0]


Place = Callable[[nn.Module], None]


def build_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    initialize: str = "pretrained",
    attn_implementation: str = "auto",
    gradient_checkpointing: bool = False,
    seed: int = 0,
    group: TensorGroup | None = None,
    place: Place | None = None,
    widen_bf16: bool = False,
) -> BuiltModel:
    """The model of `source` with trainable weights in `dtype`, cut for `group`.

    initialize: `pretrained`, `random`, or `empty` for a model whose tensors are on the meta device.
    `place` receives each transformer block, and at the end the whole model, once its weights are
    final. The default keeps private copies on the CPU. `widen_bf16`: see widened.py. Raises ModelError
    before any weight is read when the family or the degree is refused.
    """
    group = group or TensorGroup()
    family = find_family(source.config_dict(), source.shape, group.size)
    model, left_out = _load(source, initialize, attn_implementation, seed)
    if gradient_checkpointing:
        _refuse_without_checkpointing(model)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    transposed = conv1d_to_linear(model)
    blocks_name, blocks = _find_blocks(model, source.shape)
    head = model.get_output_embeddings() if source.head is None else find_head(model)
    counts, unread = _count(model, blocks, head), _unread(model, head)
    cuts: dict[str, Cut] = {}
    for index, block in enumerate(blocks):
        if family is not None:
            cuts |= cut_block(block, f"{blocks_name}.{index}.", family, source.shape, group)
        _place(block, dtype, place)
    if family is not None:
        cuts |= (cut_vocabulary if source.head is None else cut_embedding)(model, source.shape, group)
    _place(model, dtype, place)
    if widen_bf16:
        widen(model)
    return BuiltModel(
        model=model,
        source=source,
        block_class=type(blocks[0]),
        cuts=cuts,
        transposed=transposed,
        unread=unread,
        left_out=left_out,
        **counts,
    )


def _load(
    source: ModelSource, initialize: str, attn_implementation: str, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and the names of stored weights that it has no place for."""
    _refuse_without_language_model(source)
    attention = choose_attention(source, attn_implementation)
    try:
        if initialize == "empty":
            with torch.device("meta"):
                return _random(source, attention, seed), ()
        if initialize == "random":
            return _random(source, attention, seed), ()
        return _pretrained(source, attention, seed)
    except (ValueError, ImportError, OSError, SafetensorError) as error:
        raise ModelError(f"transformers cannot build the model of {source.folder}: {error}") from error


def _refuse_without_language_model(source: ModelSource) -> None:
    """transformers would list all of its types."""
    config = source.config
    is_known = type(config) in AutoModelForCausalLM._model_mapping or hasattr(config, "auto_map")
    if source.head is not None or is_known:
        return
    inside = config.get_text_config().model_type
    what = f"holds one ({inside}) inside" if inside != config.model_type else "is another kind of model"
    raise ModelError(
        f"{source.folder}: transformers has no causal language model of type '{config.model_type}', which {what}. Give "
        "a folder of a language model; where one is inside, save that alone, with its tokenizer: "
        "`model.get_decoder()` of the loaded model."
    )


def _refuse_without_checkpointing(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"model.gradient_checkpointing is true, but a {type(model).__name__} of transformers cannot compute its "
            "blocks again. Use model.gradient_checkpointing=false."
        )


def _random(source: ModelSource, attention: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        # Weights are drawn on the CPU. torch.manual_seed would also reset GPUs, in the midst of training for a twin.
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = _auto_class(source).from_config(
            _config(source),
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=source.trust_remote_code,
        )
    return model


def _auto_class(source: ModelSource) -> Any:
    return AutoModelForCausalLM if source.head is None else source.head.auto_class


def _config(source: ModelSource) -> PreTrainedConfig:
    """The configuration, with what a classifier head adds to it."""
    if source.head is None:
        return source.config
    find_class(source.head, source.config)
    config = copy.deepcopy(source.config)
    config.update(source.head.settings())
    # Where transformers looks for a row's last token.
    config.get_text_config().pad_token_id = source.head.pad_id
    return config


def _stored_config(source: ModelSource) -> PreTrainedConfig:
    """The configuration with as many tokens as the weights have rows for."""
    config = _config(source)
    if source.growth is not None:
        config = copy.deepcopy(config)
        config.get_text_config().vocab_size = source.growth.num_rows
    return config


def _renaming(source: ModelSource) -> dict[str, Any]:
    """For classes that call the body of the model otherwise than the causal one does (spans of Llama)."""
    causal: Any = AutoModelForCausalLM._model_mapping.get(type(source.config), None)
    if source.head is None or causal is None:
        return {}
    ours, theirs = find_class(source.head, source.config).base_model_prefix, causal.base_model_prefix
    return {} if ours == theirs else {"key_mapping": {rf"^{theirs}\.": f"{ours}."}}


def _pretrained(source: ModelSource, attention: str, seed: int) -> tuple[PreTrainedModel, tuple[str, ...]]:
    loaded: Any = _auto_class(source).from_pretrained(
        source.weights_folder,
        config=_stored_config(source),
        dtype=stored_dtype(source.weights_folder),
        attn_implementation=attention,
        trust_remote_code=source.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name them: transformers refuses them in a table that is not shown
        **_renaming(source),
    )
    model: PreTrainedModel = loaded[0]
    _refuse_other_sizes(source, loaded[1]["mismatched_keys"])
    drawn = head_parameters(model) if source.head else set()
    missing = sorted(set(loaded[1]["missing_keys"]) - drawn)
    if drawn & set(loaded[1]["missing_keys"]):
        draw_head(model, getattr(source.config, "initializer_range", None) or _HEAD_STD, seed)
    if missing:
        raise ModelError(
            f"{source.folder}: {len(missing)} weights of the model are not in its files, for example "
            f"{', '.join(missing[:3])}. They would be trained from random values; is this a causal language model?"
        )
    if source.growth is not None:
        grow_vocabulary(model, source.shape.vocab_size, num_known=source.growth.num_known)
    return model, tuple(sorted(loaded[1]["unexpected_keys"]))


def _refuse_other_sizes(
    source: ModelSource, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    found = sorted(mismatched)
    if found:
        name, stored, wanted = found[0]
        raise ModelError(
            f"{source.folder}: {len(found)} weights have other sizes than config.json says, for example {name}: "
            f"{list(stored)} in the files, {list(wanted)} by config.json. One of the two belongs to another model."
        )


def choose_attention(source: ModelSource, asked: str) -> str:
    """The attention kernel for `asked`; `auto` is sdpa for models that have it, eager for the others."""
    if asked != "auto":
        return asked
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(source.config), None)
    return "eager" if model_class is not None and not model_class._supports_sdpa else "sdpa"


def _find_blocks(model: PreTrainedModel, shape: ModelShape) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the ModuleList with one entry a layer, of the module that reads tokens.

    A tower for images may have as many layers as the language model beside it.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == shape.num_layers
    ]
    if len(found) > 1:
        of_text = set(model.get_decoder().modules())
        found = [(name, blocks) for name, blocks in found if blocks in of_text]
    if found:
        return found[0]
    raise ModelError(
        f"no list of {shape.num_layers} transformer blocks was found in a {type(model).__name__}; megatune trains "
        "decoder-only models whose config.json counts their layers."
    )


def _unread(model: PreTrainedModel, head: nn.Module) -> frozenset[str]:
    if model.config.get_text_config() is model.config:
        return frozenset()
    read = {id(parameter) for part in (model.get_decoder(), head) for parameter in part.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in read)


def _count(model: PreTrainedModel, blocks: nn.ModuleList, head: Any) -> dict[str, int]:
    per_token = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    matrices = [_num_active(module, per_token) for module in blocks.modules()]
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(model).__name__} has no linear output head: it is not a causal language model."
        )
    return {
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        "num_matmul_params": sum(matrices),
        "num_head_params": head.weight.numel(),
    }


def _num_active(module: nn.Module, experts_per_token: int | None) -> int:
    """Elements of this module's own weights that one token is multiplied with."""
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    if not hasattr(module, "num_experts"):
        return 0
    # A router, whose weight is a matrix, or experts, one behind another along the first dimension.
    return sum(
        p.numel() // p.shape[0] * (experts_per_token or p.shape[0]) if p.dim() == 3 else p.numel()
        for name, p in module.named_parameters(recurse=False)
        if p.dim() == 3 or name == "weight"
    )


def _place(module: nn.Module, dtype: torch.dtype, place: Place | None) -> None:
    """Cast what is not placed yet, then pass it on. Buffers keep their dtype: rotary angles need fp32."""
    for parameter in module.parameters():
        if not hasattr(parameter, "placed"):
            # A copy even where nothing is cast: ZeRO broadcasts the first rank's weights into those of the
            # others, and a mapped page that is written to is private memory until the file is closed.
            parameter.data = parameter.data.to(dtype, copy=True).contiguous()
            parameter.placed = True  # type: ignore[attr-defined]
    if place is not None:
        place(module)
