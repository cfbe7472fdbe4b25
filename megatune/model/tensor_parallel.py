"""Turn one transformer block, embedding or head into this rank's share of it.

`cut_block` works on a single block so that the caller can hand each block's weights on (to
ZeRO-3's partitions) before the next one is copied out of the memory-mapped files.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from megatune.errors import ModelError
from megatune.model.collectives import TensorGroup
from megatune.plan.families import Family, Segments, weight_cut
from megatune.plan.shape import ModelShape
from megatune.plan.shards import Cut, Segment, split_units, unit_of

Layer = TypeVar("Layer", bound=nn.Linear)


class ColumnLinear(nn.Linear):
    """A Linear that holds some of the output features; its input is the same on every rank."""

    group: TensorGroup

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(self.group.enter(input), self.weight, self.bias)


class RowLinear(nn.Linear):
    """A Linear that holds some of the input features; its output is summed over the group."""

    group: TensorGroup

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = self.group.sum(F.linear(input, self.weight))
        return output if self.bias is None else output + self.bias


class KeyValueLinear(nn.Linear):
    """A Linear that holds all key or value heads, and of which this rank computes one: others have that one too.

    Its gradient is of this rank's query heads alone, and is summed over the group.
    """

    group: TensorGroup
    rows: slice

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.multiplied_in(input.dtype, input)

    def multiplied_in(self, compute: torch.dtype, input: torch.Tensor) -> torch.Tensor:
        """The head, multiplied and summed in `compute`; it has the dtype of `input`."""
        entered = self.group.enter(input)
        output: torch.Tensor = _LinearOfRows.apply(  # type: ignore[no-untyped-call]
            entered, self.weight, self.bias, self.rows, compute
        )
        return output


class _LinearOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: slice,
        compute: torch.dtype,
    ) -> torch.Tensor:
        # The weight is kept, and not its rows: ZeRO-3 empties it after this and fills it before backward.
        ctx.save_for_backward(input, weight)
        ctx.rows, ctx.compute, ctx.has_bias = rows, compute, bias is not None
        part = None if bias is None else bias[rows].to(compute)
        return F.linear(input.to(compute), weight[rows].to(compute), part).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad = grad_output.flatten(0, -2).to(ctx.compute)
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = (grad @ weight[ctx.rows].to(ctx.compute)).to(input.dtype).view_as(input)
        grad_weight = torch.zeros_like(weight)
        grad_weight[ctx.rows] = (grad.t() @ input.flatten(0, -2).to(ctx.compute)).to(weight.dtype)
        if ctx.has_bias:
            grad_bias = weight.new_zeros(len(weight))
            grad_bias[ctx.rows] = grad.sum(dim=0).to(weight.dtype)
        return grad_input, grad_weight, grad_bias, None, None


class HeadsNorm(nn.Module):
    """An RMS norm over the heads of all ranks, of which this one holds some (OLMo 2's norms of query and key)."""

    def __init__(self, weight: nn.Parameter, whole: nn.Module, num_features: int, group: TensorGroup) -> None:
        super().__init__()
        self.weight, self.num_features, self.group = weight, num_features, group
        self.epsilon = float(whole.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        wide = input.float()
        squares = self.group.sum(wide.square().sum(-1, keepdim=True))
        mean = self.group.enter(squares) / self.num_features  # every rank's output depends on it
        return (self.weight * (wide * torch.rsqrt(mean + self.epsilon))).to(input.dtype)


class VocabularyHead(ColumnLinear):
    """The output head over this rank's vocabulary rows.

    `gather_logits` chooses between this rank's logits (the loss works on those, see loss.py) and
    the whole vocabulary's, which generation needs and which have no gradient.
    """

    vocabulary: Cut
    gather_logits: bool = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input)
        if not self.gather_logits:
            return logits
        sizes = [self.vocabulary.local_size(rank, self.group.size) for rank in range(self.group.size)]
        return self.group.gather_last(logits, sizes)


def cut_block(
    block: nn.Module, prefix: str, family: Family, shape: ModelShape, group: TensorGroup
) -> dict[str, Cut]:
    """Cut one transformer block in place. Returns parameter name (with `prefix`) -> cut."""
    cuts: dict[str, Cut] = {}
    shared = family.shared_layers(shape, group.size)
    own_layers = _layers_of(block, prefix, family) - {*shared}
    for names, dim, layer in ((family.columns, 0, ColumnLinear), (family.rows, 1, RowLinear)):
        for name, segments in names.items():
            if name in own_layers:
                cuts |= _cut_linear(block, prefix, name, segments, dim, layer, shape, group)
    for name in shared:
        _share_heads(block, name, shape, group)
    for name, (dim, segments) in family.parameters.items():
        if _has(block, name.rpartition(".")[0]):
            cuts |= _cut_parameter(block, prefix, name, segments, dim, shape, group)
    if family.experts is not None and _has(block, family.experts):
        _sum_experts(block.get_submodule(family.experts), family, group)
    for name, segments in family.norms_over_heads.items():
        cuts |= _cut_norm(block, prefix, name, segments, shape, group)
    _localise(block, family, shape, group)
    for name in family.partial_gradients:
        _sum_gradient(block, name, group)
    if family.slices_alibi is not None:
        _slice_alibi(block.get_submodule(family.slices_alibi), shape, group)
    return cuts


def cut_vocabulary(model: nn.Module, shape: ModelShape, group: TensorGroup) -> dict[str, Cut]:
    """Cut the embedding and the head along the vocabulary. Returns parameter name -> cut."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
        raise ModelError(
            f"the head of '{shape.model_type}' is a {type(head).__name__}, not a Linear over the vocabulary: "
            "megatune cannot cut it. Use parallel.tp_size=1."
        )
    cut = Cut(dim=0, segments=(Segment(head.weight.shape[0], 1),))
    names = {id(module): name for name, module in model.named_modules()}
    tied = head.weight is embedding.weight
    _cut_embedding(embedding, cut, group)
    new_head = _tied_head(embedding, group) if tied else _share(head, VocabularyHead, cut, group)
    new_head.vocabulary = cut
    _replace(model, names[id(head)], new_head)
    cuts = {f"{names[id(module)]}.weight": cut for module in (embedding, head)}
    return cuts | ({f"{names[id(head)]}.bias": cut} if head.bias is not None else {})


def cut_embedding(model: nn.Module, shape: ModelShape, group: TensorGroup) -> dict[str, Cut]:
    """Cut the embedding of a model without a head over the vocabulary. Returns parameter name -> cut."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(
            f"the embedding of '{shape.model_type}' is a {type(embedding).__name__}; use parallel.tp_size=1."
        )
    cut = Cut(dim=0, segments=(Segment(embedding.weight.shape[0], 1),))
    _cut_embedding(embedding, cut, group)
    name = next(name for name, module in model.named_modules() if module is embedding)
    return {f"{name}.weight": cut}


def _cut_linear(
    block: nn.Module,
    prefix: str,
    name: str,
    segments: Segments,
    dim: int,
    layer: type[nn.Linear],
    shape: ModelShape,
    group: TensorGroup,
) -> dict[str, Cut]:
    linear = block.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            f"{prefix}{name} is a {type(linear).__name__}, not a Linear: use parallel.tp_size=1."
        )
    cut = weight_cut(
        segments, shape, dim=dim, full_size=linear.weight.shape[dim], name=f"{prefix}{name}.weight"
    )
    _replace(block, name, _share(linear, layer, cut, group))
    bias = {f"{prefix}{name}.bias": cut} if linear.bias is not None and dim == 0 else {}
    return {f"{prefix}{name}.weight": cut} | bias


def _share_heads(block: nn.Module, name: str, shape: ModelShape, group: TensorGroup) -> None:
    """Leave the weight whole, and have this rank compute the head that its query heads belong to."""
    linear: Any = block.get_submodule(name)
    first = unit_of(group.rank, shape.num_kv_heads, group.size) * shape.head_size
    layer = KeyValueLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.group, layer.rows = group, slice(first, first + shape.head_size)
    layer.train(linear.training)
    _replace(block, name, layer)
    for part in ("weight", "bias") if linear.bias is not None else ("weight",):
        _sum_gradient(block, f"{name}.{part}", group)


def _has(block: nn.Module, name: str) -> bool:
    return any(name == path for path, _ in block.named_modules())


def _layers_of(block: nn.Module, prefix: str, family: Family) -> set[str]:
    """The layers to cut: all of the plan; where blocks may have experts, those of feed-forward layers that it has."""
    layers = {*family.columns, *family.rows}
    if family.experts is None:
        return layers
    found = {name for name in layers if name.startswith("self_attn.") or _has(block, name)}
    if not _has(block, family.experts) and all(name.startswith("self_attn.") for name in found):
        raise ModelError(
            f"{prefix}{family.experts}: this block has neither experts of that name nor a feed-forward layer that "
            "megatune knows to cut. Use parallel.tp_size=1."
        )
    return found


def _cut_parameter(
    block: nn.Module,
    prefix: str,
    name: str,
    segments: Segments,
    dim: int,
    shape: ModelShape,
    group: TensorGroup,
) -> dict[str, Cut]:
    path, _, leaf = name.rpartition(".")
    module = block.get_submodule(path)
    whole = module.get_parameter(leaf)
    cut = weight_cut(segments, shape, dim=dim, full_size=whole.shape[dim], name=f"{prefix}{name}")
    setattr(module, leaf, _parameter(local_part(whole.detach(), cut, group), whole, is_cut=True))
    return {f"{prefix}{name}": cut}


def _sum_experts(experts: nn.Module, family: Family, group: TensorGroup) -> None:
    """Each rank has some features of every expert: the sum of what they make of them is the answer.

    All ranks choose alike, for their hidden states are the same bits. The weights of the choice multiply partial
    answers, so their gradient is summed like that of the input.
    """
    added_once = [name.rpartition(".")[2] for name in family.added_once]
    whole_forward: Callable[..., torch.Tensor] = experts.forward

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # An attribute of the instance goes before the parameter of that name, which a module looks up last.
        shown = {name: experts.get_parameter(name) * (group.rank == 0) for name in added_once}
        experts.__dict__.update(shown)
        try:
            return group.sum(whole_forward(group.enter(hidden), chosen, group.enter(weights)))
        finally:
            for name in shown:
                del experts.__dict__[name]

    experts.forward = forward


def _cut_norm(
    block: nn.Module, prefix: str, name: str, segments: Segments, shape: ModelShape, group: TensorGroup
) -> dict[str, Cut]:
    norm = block.get_submodule(name)
    whole = norm.get_parameter("weight")
    cut = weight_cut(segments, shape, dim=0, full_size=len(whole), name=f"{prefix}{name}.weight")
    weight = _parameter(local_part(whole.detach(), cut, group), whole, is_cut=True)
    _replace(block, name, HeadsNorm(weight, norm, len(whole), group))
    return {f"{prefix}{name}.weight": cut}


def _share(linear: nn.Linear, layer: type[Layer], cut: Cut, group: TensorGroup) -> Layer:
    """A new layer of class `layer` with this rank's part of `linear`."""
    weight = local_part(linear.weight.detach(), cut, group)
    share = layer(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    share.weight = _parameter(weight, linear.weight, is_cut=True)
    if linear.bias is not None:
        bias = local_part(linear.bias.detach(), cut, group) if cut.dim == 0 else linear.bias.detach()
        share.bias = _parameter(bias, linear.bias, is_cut=cut.dim == 0)
    share.group = group  # type: ignore[assignment]
    share.train(linear.training)
    return share


def _tied_head(embedding: nn.Embedding, group: TensorGroup) -> VocabularyHead:
    head = VocabularyHead(embedding.embedding_dim, embedding.num_embeddings, bias=False, device="meta")
    head.weight, head.group = embedding.weight, group
    return head


def local_part(tensor: torch.Tensor, cut: Cut, group: TensorGroup) -> torch.Tensor:
    """This rank's part of a whole `tensor`, as a contiguous copy."""
    parts = [
        tensor.narrow(cut.dim, start, stop - start) for start, stop in cut.ranges(group.rank, group.size)
    ]
    return torch.cat(parts, dim=cut.dim) if len(parts) > 1 else parts[0].contiguous()


def _parameter(value: torch.Tensor, like: torch.Tensor, *, is_cut: bool) -> nn.Parameter:
    parameter = nn.Parameter(value, requires_grad=like.requires_grad)
    # Read by DeepSpeed's gradient norm: parameters without it are counted on one rank of the group only.
    parameter.tensor_model_parallel = is_cut  # type: ignore[attr-defined]
    return parameter


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _cut_embedding(embedding: nn.Embedding, cut: Cut, group: TensorGroup) -> None:
    """Keep this rank's rows; look-ups of other rows give zero here and the sum over the group is the embedding."""
    ((start, stop),) = cut.ranges(group.rank, group.size)
    embedding.weight = _parameter(
        local_part(embedding.weight.detach(), cut, group), embedding.weight, is_cut=True
    )
    embedding.num_embeddings = stop - start
    padding = embedding.padding_idx
    embedding.padding_idx = padding - start if padding is not None and start <= padding < stop else None
    whole_forward: Callable[[torch.Tensor], torch.Tensor] = embedding.forward

    def forward(ids: torch.Tensor) -> torch.Tensor:
        elsewhere = (ids < start) | (ids >= stop)
        rows = whole_forward((ids - start).masked_fill(elsewhere, 0))
        return group.sum(rows.masked_fill(elsewhere.unsqueeze(-1), 0))

    embedding.forward = forward  # type: ignore[method-assign,assignment]


def _localise(block: nn.Module, family: Family, shape: ModelShape, group: TensorGroup) -> None:
    """Tell the block's own code how many heads it has on this rank."""
    heads, kv_heads = shape.local_heads(group.size, group.rank)
    for name in family.shared_layers(shape, group.size):
        attention: Any = block.get_submodule(name.rpartition(".")[0])
        attention.num_key_value_groups = heads
    values = {"heads": heads, "kv_heads": kv_heads, "q_width": heads * shape.head_size}
    for path, attributes in family.local_attributes.items():
        module = block.get_submodule(path)
        for attribute, meaning in attributes.items():
            owner: object = module
            if attribute.startswith("config."):
                module.config = owner = copy.copy(module.config)  # the model's own config stays whole
                attribute = attribute.removeprefix("config.")
            setattr(owner, attribute, values[meaning])


def _sum_gradient(block: nn.Module, name: str, group: TensorGroup) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        parameter = block.get_submodule(path).get_parameter(leaf)
    except AttributeError:
        return  # an optional norm this config does not have
    parameter.register_hook(lambda grad: group.all_reduce(grad.clone()))


def _slice_alibi(attention: nn.Module, shape: ModelShape, group: TensorGroup) -> None:
    counts = split_units(shape.num_heads, group.size)
    start = sum(counts[: group.rank])
    stop = start + counts[group.rank]

    def keep_local_heads(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        alibi = kwargs["alibi"]  # (batch * heads, 1, keys)
        heads = alibi.view(-1, shape.num_heads, *alibi.shape[1:])[:, start:stop]
        return args, {**kwargs, "alibi": heads.reshape(-1, *alibi.shape[1:])}

    attention.register_forward_pre_hook(keep_local_heads, with_kwargs=True)
