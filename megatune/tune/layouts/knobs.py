"""What a tune may change: one row a knob. A new key of the run file becomes a knob by a row here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from megatune.config import Run
from megatune.config.document import format_value
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import LAYOUT_KEYS, value_of, values_of
from megatune.plan.weights import ModelWeights

POLICY = "deepspeed:"
"""In front of a key that is one of the DeepSpeed policy file, not of the run file."""
AS_IT_IS = "null"
"""The value of a policy's key that is left as the run's own policy, or DeepSpeed's default, has it."""
RANKS = "launch.nproc_per_node"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the values to try depend on."""

    run: Run
    policy: Mapping[str, Any]
    model: ModelWeights
    on_cpu: bool


def _nothing_else(around: Surroundings) -> Sequence[str]:
    del around
    return ()


def _always(layout: Layout) -> bool:
    del layout
    return True


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One setting that changes how a step is computed and not what it computes."""

    key: str
    what: str
    others: Callable[[Surroundings], Sequence[str]] = _nothing_else
    """Values worth a trial beside the run's own, as texts of overrides; of a knob that is no part of a layout."""
    has_effect: Callable[[Layout], bool] = _always
    """Where it has none, only the run's own value is tried."""

    @property
    def in_layout(self) -> bool:
        """Its values are those of the planner's layouts."""
        return self.key in LAYOUT_KEYS

    def own_value(self, around: Surroundings) -> str:
        """The run's value, as the text of an override."""
        if self.key.startswith(POLICY):
            return _policy_value(around.policy, self.key)
        return format_value(value_of(around.run, self.key))

    def side_values(self, around: Surroundings) -> list[str]:
        """The run's own value and the others, none twice."""
        return list(dict.fromkeys([self.own_value(around), *self.others(around)]))


def _policy_value(policy: Mapping[str, Any], key: str) -> str:
    found: Any = policy
    for name in key.removeprefix(POLICY).split("."):
        found = found.get(name, "auto") if isinstance(found, Mapping) else "auto"
    return AS_IT_IS if found == "auto" else format_value(found)


def _other_kernels(around: Surroundings) -> Sequence[str]:
    """flash_attention_2 where it can run. One that was asked for by name is kept: eager may have its reason."""
    usable = not around.on_cpu and around.run.precision != "fp32" and find_spec("flash_attn") is not None
    return ("flash_attention_2",) if usable and around.run.model.attn_implementation == "auto" else ()


def _one_block(around: Surroundings) -> Sequence[str]:
    """Elements of one block: what leaf modules gather and reduce at a time."""
    return (str(sum(weight.num_params for weight in around.model.block)),)


def _other_loss(around: Surroundings) -> Sequence[str]:
    """Whole logits where the loss is taken in chunks, as auto does where it can; chunks where it is not."""
    return ("true",) if around.run.train.chunked_loss is False else ("false",)


def _other_keeping(around: Surroundings) -> Sequence[str]:
    """The opposite of what is done; under auto that hangs on the model's size, so both."""
    asked = around.run.parallel.keep_gathered
    return ("true", "false") if asked == "auto" else (format_value(not asked),)


def _other_blocks(around: Surroundings) -> Sequence[str]:
    """The opposite beside GPUs; on a CPU compiling takes 20 s of each trial, so only with --try."""
    return () if around.on_cpu else (format_value(not around.run.model.compile),)


def _threads_ahead(around: Surroundings) -> Sequence[str]:
    """Beside GPUs, whose steps may be as short as assembling rows takes; on a CPU threads take what steps need."""
    own = around.run.data.loader_workers
    return () if around.on_cpu else ("2",) if own == 0 else ("0",)


def _may_keep(layout: Layout) -> bool:
    return _shares_weights(layout) and layout.offload == "none"


def _shares_weights(layout: Layout) -> bool:
    return layout.zero_stage == 3 and layout.data_parallel > 1


def _reduces(layout: Layout) -> bool:
    return layout.zero_stage > 0 and layout.data_parallel > 1


KNOBS: tuple[Knob, ...] = (
    Knob(key="parallel.tp_size", what="devices that share each layer"),
    Knob(key="parallel.zero_stage", what="what data-parallel ranks share out"),
    Knob(
        key="train.per_device_train_batch_size",
        what="sequences in a micro-batch; accumulation follows from the global batch",
    ),
    Knob(
        key="model.gradient_checkpointing",
        what="activations are computed again in backward",
    ),
    Knob(key="parallel.offload", what="what lives in host memory"),
    Knob(key=RANKS, what="ranks on this machine (only with --try)"),
    Knob(
        key="parallel.leaf_modules",
        what="ZeRO-3 gathers a whole block at a time",
        others=lambda around: [format_value(not around.run.parallel.leaf_modules)],
        has_effect=_shares_weights,
    ),
    Knob(
        key="parallel.keep_gathered",
        what="ZeRO-3 keeps gathered weights from step to step",
        others=_other_keeping,
        has_effect=_may_keep,
    ),
    Knob(key="train.chunked_loss", what="the loss is taken some tokens at a time", others=_other_loss),
    Knob(key="model.attn_implementation", what="attention kernel", others=_other_kernels),
    Knob(
        key="model.compile",
        what="blocks through torch.compile",
        others=_other_blocks,
    ),
    Knob(
        key="data.loader_workers",
        what="threads that assemble the rows of next steps",
        others=_threads_ahead,
    ),
    Knob(
        key=f"{POLICY}zero_optimization.reduce_bucket_size",
        what="gradients that are reduced at a time, in elements",
        others=_one_block,
        has_effect=_reduces,
    ),
    Knob(
        key=f"{POLICY}zero_optimization.stage3_prefetch_bucket_size",
        what="weights that are gathered ahead, in elements",
        others=_one_block,
        has_effect=_shares_weights,
    ),
)
BY_KEY = {knob.key: knob for knob in KNOBS}
LAYOUT_KNOBS = tuple(knob for knob in KNOBS if knob.in_layout)
SIDE_KNOBS = tuple(knob for knob in KNOBS if not knob.in_layout)


def layout_values(layout: Layout) -> dict[str, str]:
    """The keys of the run file that make `layout`; its global batch is the run's."""
    values = values_of(layout)
    return {knob.key: format_value(values[knob.key]) for knob in LAYOUT_KNOBS}
