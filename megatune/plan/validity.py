"""Whether a layout can be trained at all: one answer for searches, `plan --layout`, `submit`, `tune` and `train`.

Ranks that srun or torchrun start meet the same rules where they are enforced: ds_config.py, and the model's build.
"""

from collections.abc import Mapping
from typing import Any

from megatune.config import BatchShape, Run, layout_problems
from megatune.errors import ConfigError, ModelError
from megatune.plan.assess import Question
from megatune.plan.ds_config import ds_config_problems
from megatune.plan.families import find_family
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import batch_of, with_layout
from megatune.plan.shape import ModelShape


def start_problems(
    run: Run, batch: BatchShape, policy: Mapping[str, Any], config: Mapping[str, Any], shape: ModelShape
) -> list[str]:
    """Why `run` cannot train in the layout that it gives: by the run file's rules, the policy's, or the model's family.

    config: the model's config.json.
    """
    problems = [*layout_problems(run), *ds_config_problems(run, batch, policy)]
    uncut = family_problem(config, shape, run.parallel.tp_size)
    return problems if uncut is None else [*problems, uncut]


def length_problem(run: Run, shape: ModelShape) -> str | None:
    """Why a model has no place for the run's rows; None where it has, or does not say."""
    longest = shape.max_positions
    if longest is None or run.data.max_seq_length <= longest:
        return None
    return (
        f"data.max_seq_length = {run.data.max_seq_length} is more than the {longest} positions of "
        f"{run.model.model_name_or_path}. Use {longest} or less."
    )


def family_problem(config: Mapping[str, Any], shape: ModelShape, tensor_parallel: int) -> str | None:
    """Why a model cannot be cut to a degree; None where it can."""
    try:
        find_family(config, shape, tensor_parallel)
    except ModelError as error:
        return str(error)
    return None


def problems_of(question: Question, layout: Layout) -> list[str]:
    """Why a start would refuse `layout`; nothing where it would train."""
    run, model = with_layout(question.run, layout), question.work.model
    return start_problems(run, batch_of(layout), question.policy, model.config, model.shape)


def refuse_untrainable(question: Question, layout: Layout, *, source: str = "the run file") -> None:
    """Raise ConfigError with every reason why a start would refuse `layout`."""
    problems = problems_of(question, layout)
    if problems:
        raise ConfigError(problems, source=source)


def across_nodes(question: Question, tensor_parallel: int) -> str | None:
    """Why a degree that can be trained is not looked for: None where its groups lie inside nodes."""
    per_node = question.place.ranks_per_node
    if tensor_parallel == 1 or per_node % tensor_parallel == 0:
        return None
    return f"a tensor-parallel group would lie on several nodes of {per_node}, over their slow links"
