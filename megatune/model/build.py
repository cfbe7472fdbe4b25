"""Build a model: read it memory-mapped, cut it for tensor parallelism, hand it on block by block.

The weights stay in the mapped safetensors files until a block is cut and *placed* (cast and, under
ZeRO-3, partitioned by the engine), so a rank never holds much more than its own share plus one block.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatune.errors import ModelError
from megatune.model.collectives import TensorGroup
from megatune.model.conv1d import conv1d_to_linear
from megatune.model.source import ModelSource, stored_dtype
from megatune.model.tensor_parallel import VocabularyHead, cut_block, cut_vocabulary
from megatune.plan.families import find_family
from megatune.plan.shape import ModelShape
from megatune.plan.shards import Cut


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model whose parameters are this rank's share, and how to put the whole together again."""

    model: PreTrainedModel
    source: ModelSource
    block_class: type[nn.Module]
    num_params: int
    """Parameters of the whole model, tied ones counted once."""
    num_matmul_params: int
    """Parameters of the blocks' weight matrices: what multiplies every token. The head is `num_head_params`."""
    num_head_params: int
    cuts: dict[str, Cut] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    """Weights to transpose back on export (GPT-2's Conv1D)."""

    @property
    def shape(self) -> ModelShape:
        return self.source.shape

    @property
    def head(self) -> nn.Module:
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
) -> BuiltModel:
    """The model of `source` with trainable weights in `dtype`, cut for `group`.

    `place` receives each transformer block, and at the end the whole model, once its weights are
    final. The default keeps private copies on the CPU. Raises ModelError before any weight is
    read when the family or the degree is refused.
    """
    group = group or TensorGroup()
    family = find_family(source.config_dict(), source.shape, group.size)
    model = _load(source, initialize, attn_implementation, seed)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    transposed = conv1d_to_linear(model)
    blocks_name, blocks = _find_blocks(model, source.shape)
    counts = _count(model, blocks)
    cuts: dict[str, Cut] = {}
    for index, block in enumerate(blocks):
        if family is not None:
            cuts |= cut_block(block, f"{blocks_name}.{index}.", family, source.shape, group)
        _place(block, dtype, place)
    if family is not None:
        cuts |= cut_vocabulary(model, source.shape, group)
    _place(model, dtype, place)
    return BuiltModel(
        model=model, source=source, block_class=type(blocks[0]), cuts=cuts, transposed=transposed, **counts
    )


def _load(source: ModelSource, initialize: str, attn_implementation: str, seed: int) -> PreTrainedModel:
    attention = choose_attention(source, attn_implementation)
    try:
        return _random(source, attention, seed) if initialize == "random" else _pretrained(source, attention)
    except (ValueError, ImportError, OSError) as error:
        raise ModelError(f"transformers cannot build the model of {source.folder}: {error}") from error


def _random(source: ModelSource, attention: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            source.config,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=source.trust_remote_code,
        )
    return model


def _pretrained(source: ModelSource, attention: str) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.folder,
        dtype=stored_dtype(source.folder),
        attn_implementation=attention,
        trust_remote_code=source.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.folder}: {len(missing)} weights of the model are not in its files, for example "
            f"{', '.join(missing[:3])}. They would be trained from random values; is this a causal language model?"
        )
    return model


def choose_attention(source: ModelSource, asked: str) -> str:
    """The attention kernel for `asked`; `auto` is sdpa for models that have it, eager for the others."""
    if asked != "auto":
        return asked
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(source.config), None)
    return "eager" if model_class is not None and not model_class._supports_sdpa else "sdpa"


def _find_blocks(model: nn.Module, shape: ModelShape) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the ModuleList with one entry a layer."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == shape.num_layers:
            return name, module
    raise ModelError(
        f"no list of {shape.num_layers} transformer blocks was found in a {type(model).__name__}; megatune trains "
        "decoder-only models whose config.json counts their layers."
    )


def _count(model: PreTrainedModel, blocks: nn.ModuleList) -> dict[str, int]:
    matrices = [module.weight.numel() for module in blocks.modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(model).__name__} has no linear output head: it is not a causal language model."
        )
    return {
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        "num_matmul_params": sum(matrices),
        "num_head_params": head.weight.numel(),
    }


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
