"""All parameters of a model from its config.json: how many, of what, and how many on one rank. Exact.

`count_model` reads the configuration; `ModelWeights` answers what the ledger and the time model ask.
Tied embeddings are one tensor, as in transformers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from megatune.plan.blocks import Component, Weight, block_weights
from megatune.plan.config_values import checked
from megatune.plan.families import FAMILIES, Family, weight_cut
from megatune.plan.model_types import MODEL_TYPES, ModelType
from megatune.plan.shape import ModelShape, shape_from_config
from megatune.plan.shards import split_units


@dataclass(frozen=True, kw_only=True)
class ClassHead:
    """A classifier head in place of the one over the vocabulary. It is whole on every rank, and never tied."""

    num_outputs: int
    has_bias: bool
    """Heads for tokens and spans have one, those for whole texts do not."""


@dataclass(frozen=True)
class ModelWeights:
    """The parameters of one model. Blocks are all alike."""

    shape: ModelShape
    block: tuple[Weight, ...]
    outside: tuple[Weight, ...]
    """Everything beside the blocks; a tied head is not in it."""
    config: Mapping[str, Any]
    class_head: ClassHead | None = None

    @property
    def kind(self) -> ModelType:
        """What is known of its type."""
        return MODEL_TYPES[self.shape.model_type]

    @property
    def family(self) -> Family | None:
        """How blocks are cut for tensor parallelism; None for types without a plan."""
        return FAMILIES.get(self.shape.model_type)

    @cached_property
    def num_params(self) -> int:
        return sum(self.by_component.values())

    @cached_property
    def by_component(self) -> dict[Component, int]:
        """Parameters of embedding, attention, mlp, norm and head; tied ones count as embedding."""
        counts: dict[Component, int] = {"embedding": 0, "attention": 0, "mlp": 0, "norm": 0, "head": 0}
        for weight in self.outside:
            counts[weight.component] += weight.num_params
        for weight in self.block:
            counts[weight.component] += weight.num_params * self.shape.num_layers
        return counts

    @cached_property
    def num_matmul_params(self) -> int:
        """Parameters of the blocks' matrices that multiply a token: of experts those that it has."""
        return self.shape.num_layers * sum(weight.num_active_params for weight in self.block)

    @property
    def num_head_params(self) -> int:
        """Elements of the head's matrix, tied or not."""
        return self.num_local_outputs(1) * self.head_width

    def num_local_outputs(self, tensor_parallel: int) -> int:
        """Outputs of the head on the tensor-parallel rank that has most of them."""
        if self.class_head is not None:
            return self.class_head.num_outputs
        return -(-self.shape.vocab_size // tensor_parallel)

    @property
    def head_width(self) -> int:
        """Input features of the head: OPT may project to fewer than its hidden size."""
        return int(self.config.get("word_embed_proj_dim") or self.shape.hidden_size)

    @cached_property
    def ffn_size(self) -> int:
        """Features of the feed-forward layer, the inputs of its output projection: of all experts that a token has."""
        outputs = [weight for weight in self.block if weight.module.endswith("down_proj")]
        if self.has_experts:
            return sum(weight.num_active_params for weight in outputs) // self.shape.hidden_size
        return [weight.shape[1] for weight in self.block if weight.component == "mlp" and weight.is_matrix][
            -1
        ]

    @cached_property
    def has_experts(self) -> bool:
        """A token is multiplied with some of the feed-forward weights only."""
        return any(weight.experts_per_token is not None for weight in self.block)

    @cached_property
    def is_gated(self) -> bool:
        """Two projections into the feed-forward layer, multiplied (GLU)."""
        if self.has_experts:
            return True
        matrices = [w.num_params for w in self.block if w.component == "mlp" and w.is_matrix]
        return sum(matrices) == 3 * self.ffn_size * self.shape.hidden_size

    def local_block(self, tensor_parallel: int) -> tuple[Weight, ...]:
        """One block's tensors on the tensor-parallel rank that holds the most (the first)."""
        if tensor_parallel not in self._local_blocks:
            self._local_blocks[tensor_parallel] = tuple(
                _local(weight, self.family, self.shape, tensor_parallel) for weight in self.block
            )
        return self._local_blocks[tensor_parallel]

    @cached_property
    def _local_blocks(self) -> dict[int, tuple[Weight, ...]]:
        """What `local_block` has worked out: a search asks for the same few degrees thousands of times."""
        return {}

    def shared_weights(self, tensor_parallel: int) -> tuple[Weight, ...]:
        """Those of one block that every rank has whole and computes one head of: of more ranks than such heads."""
        shared = () if self.family is None else self.family.shared_layers(self.shape, tensor_parallel)
        return tuple(weight for weight in self.block if weight.module in shared)

    def multiplied_block(self, tensor_parallel: int) -> Iterator[Weight]:
        """One block's tensors as a token is multiplied with them on the rank of `local_block`."""
        shared = self.shared_weights(tensor_parallel)
        for weight in self.local_block(tensor_parallel):
            if weight in shared:
                weight = replace(weight, shape=(self.shape.head_size, *weight.shape[1:]))
            yield weight

    def local_outside(self, tensor_parallel: int) -> tuple[Weight, ...]:
        """The tensors outside the blocks on the rank that holds the most: the vocabulary is cut."""
        return tuple(self._local_outside(tensor_parallel))

    def _local_outside(self, tensor_parallel: int) -> Iterator[Weight]:
        for weight in self.outside:
            is_head = weight.component == "head" and self.class_head is None
            if weight.shape[0] != self.shape.vocab_size or not (weight.component == "embedding" or is_head):
                yield weight
            else:
                rows = split_units(weight.shape[0], tensor_parallel)[0]
                yield Weight(weight.component, weight.module, (rows, *weight.shape[1:]))

    def num_local_params(self, tensor_parallel: int) -> int:
        """Parameters on the tensor-parallel rank that holds the most, before ZeRO divides them."""
        inside = sum(weight.num_params for weight in self.local_block(tensor_parallel))
        return inside * self.shape.num_layers + sum(
            weight.num_params for weight in self.local_outside(tensor_parallel)
        )

    def flat_share(self, tensor_parallel: int, data_parallel: int, *, in_one_group: bool) -> int:
        """Elements that ZeRO stages 1 and 2 leave on a rank: a group's tensors side by side, divided as one.

        The groups are those of the optimizer, matrices and vectors, unless it has one (`in_one_group`). Each
        is padded to a multiple of two elements a rank (stage_1_and_2.py, `nccl_start_alignment_factor`).
        """
        matrices = vectors = 0
        pairs = (
            (self.local_block(tensor_parallel), self.shape.num_layers),
            (self.local_outside(tensor_parallel), 1),
        )
        for weights, times in pairs:
            for weight in weights:
                if weight.is_matrix:
                    matrices += weight.num_params * times
                else:
                    vectors += weight.num_params * times
        groups = (matrices + vectors,) if in_one_group else (matrices, vectors)
        return sum(-(-size // (2 * data_parallel)) * 2 for size in groups)

    def num_share(self, tensor_parallel: int, data_parallel: int) -> int:
        """Elements that ZeRO-3 leaves on a rank: each tensor is divided by itself and rounded up."""
        inside = sum(-(-w.num_params // data_parallel) for w in self.local_block(tensor_parallel))
        outside = sum(-(-w.num_params // data_parallel) for w in self.local_outside(tensor_parallel))
        return inside * self.shape.num_layers + outside


def count_model(config: Mapping[str, Any], class_head: ClassHead | None = None) -> ModelWeights:
    """The parameters of the model that `config` (a config.json) describes, a language model without `class_head`.

    Raises ModelError when it describes none, PlanError for a model type without a row in blocks.py.

    >>> gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257,
    ...         "n_positions": 1024}
    >>> count_model(gpt2).num_params
    124439808
    """
    shape = shape_from_config(config)
    text = checked(config, "config.json")
    block = tuple(block_weights(text, shape))
    ties_head = text.get("tie_word_embeddings", MODEL_TYPES[shape.model_type].ties_head)
    is_tied = class_head is None and bool(ties_head)
    return ModelWeights(
        shape=shape,
        block=block,
        outside=(*_outside(text, shape), *_head(text, shape, is_tied, class_head)),
        config=text,
        class_head=class_head,
    )


def _head(
    config: Mapping[str, Any], shape: ModelShape, is_tied: bool, class_head: ClassHead | None
) -> Iterator[Weight]:
    width = int(config.get("word_embed_proj_dim") or shape.hidden_size)
    if class_head is not None:
        yield Weight("head", "head", (class_head.num_outputs, width))
        if class_head.has_bias:
            yield Weight("head", "head", (class_head.num_outputs,))
        return
    if not is_tied:
        yield Weight("head", "head", (shape.vocab_size, width))
    if MODEL_TYPES[shape.model_type].head_has_bias:
        yield Weight("head", "head", (shape.vocab_size,))


def _outside(config: Mapping[str, Any], shape: ModelShape) -> Iterator[Weight]:
    kind, hidden = MODEL_TYPES[shape.model_type], shape.hidden_size
    width = int(config.get("word_embed_proj_dim") or hidden)
    yield Weight("embedding", "embedding", (shape.vocab_size, width))
    if kind.position_offset is not None:
        assert shape.max_positions is not None, "MODEL_TYPES has positions for types that learn theirs"
        yield Weight("embedding", "positions", (shape.max_positions + kind.position_offset, hidden))
    if width != hidden:
        yield Weight("embedding", "project_in", (hidden, width))
        yield Weight("embedding", "project_out", (width, hidden))
    if kind.norm.has_weight and _has_outside_norms(config):
        for name in kind.norms_outside:
            yield from [Weight("norm", name, (hidden,))] * (2 if kind.norm.has_bias else 1)


def _has_outside_norms(config: Mapping[str, Any]) -> bool:
    """Keys of OPT, whose larger and oldest models leave the last norm out."""
    return bool(
        config.get("do_layer_norm_before", True)
        and not config.get("_remove_final_layer_norm")
        and config.get("layer_norm_elementwise_affine", True)
    )


def _local(weight: Weight, family: Family | None, shape: ModelShape, tensor_parallel: int) -> Weight:
    if family is None or tensor_parallel == 1:
        return weight
    if weight.module in family.shared_layers(shape, tensor_parallel):
        return weight  # whole on every rank
    place = family.place_of(weight.module, is_matrix=weight.is_matrix)
    if place is None:
        return weight
    dim, segments = place
    cut = weight_cut(segments, shape, dim=dim, full_size=weight.shape[dim], name=weight.module)
    sizes = list(weight.shape)
    sizes[dim] = cut.local_size(0, tensor_parallel)
    return replace(weight, shape=tuple(sizes))
