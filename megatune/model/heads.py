"""Classifier heads: the transformers `AutoModelFor...` classes on a causal language model, and their losses.

A head reads the last hidden states and is small: it is whole on every rank of a tensor-parallel group,
which sees the same states and so computes the same gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)

from megatune.errors import ModelError
from megatune.tasks.labels import END, IGNORED, START

Kind = Literal["classification", "ner", "qa"]

_CLASSES: Mapping[Kind, Any] = {
    "classification": AutoModelForSequenceClassification,
    "ner": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
}
_LAYERS = ("score", "classifier", "qa_outputs")
"""What transformers calls the head of these classes."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Which head, and what its outputs mean."""

    kind: Kind
    labels: tuple[str, ...]
    """In the order of the outputs; those of a span head are start and end."""
    pad_id: int
    """What rows are filled up with: a text's class is read at the last token that is another."""
    multi_label: bool = False
    class_weights: tuple[float, ...] | None = None
    """Of the losses of each class; with several labels, of the rows that have it, as torch's `pos_weight`."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """What `asdict` gave, also after a way through JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    @property
    def auto_class(self) -> Any:
        return _CLASSES[self.kind]

    def settings(self) -> dict[str, Any]:
        """What config.json says about it."""
        problem = "multi_label_classification" if self.multi_label else "single_label_classification"
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "pad_token_id": self.pad_id,
            **({"problem_type": problem} if self.kind == "classification" else {}),
        }


def kind_named_by(architectures: Sequence[str] | None) -> Kind | None:
    """The kind of classifier head that config.json names; None for a language model.

    >>> kind_named_by(["GPT2ForTokenClassification"]), kind_named_by(["GPT2LMHeadModel"])
    ('ner', None)
    """
    named = (architectures or [""])[0]
    endings = {kind: auto_class.__name__.removeprefix("AutoModel") for kind, auto_class in _CLASSES.items()}
    return next((kind for kind, ending in endings.items() if named.endswith(ending)), None)


def auto_class_of(config: PreTrainedConfig) -> Any:
    """The class for the architecture that config.json names: of a classifier head, else a causal language model."""
    kind = kind_named_by(config.architectures)
    return AutoModelForCausalLM if kind is None else _CLASSES[kind]


def find_class(spec: HeadSpec, config: PreTrainedConfig) -> Any:
    """The model class of this head. Raises ModelError where transformers has none for the model type."""
    found = spec.auto_class._model_mapping.get(type(config), None)
    if found is None:
        raise ModelError(
            f"model.head is classifier, but transformers has no {spec.auto_class.__name__} for model type "
            f"'{config.model_type}'. Use model.head=lm, or another model."
        )
    return found


def find_head(model: nn.Module) -> nn.Linear:
    """The output layer of a model with a classifier head."""
    found = next((getattr(model, name) for name in _LAYERS if hasattr(model, name)), None)
    if not isinstance(found, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear head megatune knows ({', '.join(_LAYERS)}).")
    return found


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the head's parameters."""
    return {name for name, _ in model.named_parameters() if name.partition(".")[0] in _LAYERS}


def draw_head(model: nn.Module, std: float, seed: int) -> None:
    """Draw the weights of the head, equal on every rank; biases are 0."""
    head = find_head(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=generator) * std
        head.weight = nn.Parameter(drawn.to(head.weight.dtype))
        if head.bias is not None:
            head.bias = nn.Parameter(torch.zeros(head.bias.shape, dtype=head.bias.dtype))


def head_loss_sum(logits: torch.Tensor, labels: torch.Tensor, spec: HeadSpec) -> torch.Tensor:
    """Sum of the losses of a batch, in nats, as an fp32 scalar.

    labels: (batch, seq) of a prepared set, see `data/labelled.py`. logits: (batch, classes) of a
    classification, (batch, seq, classes) of ner, (batch, seq, 2) of spans. Of several labels the mean
    over the classes, of a span the mean of start and end, as in transformers.
    """
    logits = logits.float()
    if spec.kind == "qa":
        return _span_loss_sum(logits, labels)
    if spec.kind == "ner":
        return _class_loss_sum(logits.flatten(0, 1), labels.flatten(), spec)
    rows = labels.amax(dim=1)  # the one label of a row; IGNORED in a row that only fills up
    return _bits_loss_sum(logits, rows, spec) if spec.multi_label else _class_loss_sum(logits, rows, spec)


def bits_of(rows: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(rows, classes) of 0 and 1 from numbers whose bits are the classes."""
    return (rows[:, None] >> torch.arange(num_classes, device=rows.device)) & 1


def best_spans(logits: torch.Tensor, candidates: torch.Tensor, *, longest: int) -> list[tuple[int, int]]:
    """The likeliest (first, last) token of each row among `candidates`, at most `longest` tokens apart.

    logits: (batch, seq, 2). candidates: (batch, seq), True where a span may begin and end.
    """
    hidden = logits.float().masked_fill(~candidates[..., None], -torch.inf)
    pairs = hidden[:, :, None, 0] + hidden[:, None, :, 1]
    width = logits.shape[1]
    allowed = torch.ones(width, width, dtype=torch.bool, device=logits.device).triu().tril(longest - 1)
    best = pairs.masked_fill(~allowed, -torch.inf).flatten(1).argmax(dim=1)
    return [(int(one) // width, int(one) % width) for one in best]


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights that give every class the same share of the loss; their mean over the rows is 1.

    >>> balanced_weights([3, 1])
    (0.6666666666666666, 2.0)
    """
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 0.0 for count in counts)


def balanced_positives(counts: Sequence[int], num_rows: int) -> tuple[float, ...]:
    """Weights that give the rows with a label, of several there may be, the share of those without it.

    1 where all rows or none have it: there is nothing to balance.

    >>> balanced_positives([1, 2, 4], 4)
    (3.0, 1.0, 1.0)
    """
    return tuple((num_rows - count) / count if 0 < count < num_rows else 1.0 for count in counts)


def _class_loss_sum(logits: torch.Tensor, labels: torch.Tensor, spec: HeadSpec) -> torch.Tensor:
    weight = None if spec.class_weights is None else logits.new_tensor(spec.class_weights)
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORED, reduction="sum")


def _bits_loss_sum(logits: torch.Tensor, rows: torch.Tensor, spec: HeadSpec) -> torch.Tensor:
    weight = None if spec.class_weights is None else logits.new_tensor(spec.class_weights)
    counted = rows != IGNORED
    wanted = bits_of(rows.clamp(min=0), logits.shape[-1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
    return (losses.mean(dim=-1) * counted).sum()


def _span_loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    candidates = labels != IGNORED
    counted = candidates.any(dim=1)
    # A row that only fills up has no candidate: its scores are left as they are, and not counted.
    hidden = logits.masked_fill(~(candidates | ~counted[:, None])[..., None], -torch.inf)
    total = logits.new_zeros(())
    for place, bit in enumerate((START, END)):
        wanted = (((labels & bit) > 0) & candidates).long().argmax(dim=1)
        losses = F.cross_entropy(hidden[..., place], wanted, reduction="none")
        total = total + (losses * counted).sum() / 2
    return total
