"""The errors of a plan that comes to nothing: what lacks, what would fit, and how to get there."""

from megatune.errors import PlanError
from megatune.plan.assess import Assessment, Question
from megatune.plan.layout_keys import differing
from megatune.plan.search import Found, order_of, why_too_big
from megatune.units import format_bytes

_NUM_TOLD = 3


def refuse_too_big(asked: Assessment, found: Found) -> PlanError:
    """The error for a layout that does not fit, with the three nearest that do."""
    nearest = sorted(found.fitting, key=lambda a: (len(differing(a.layout, asked.layout)), *order_of(a)))
    lines = [f"{asked.layout}: {why_too_big(asked)}."]
    if nearest:
        lines.append("Nearest layouts that fit:")
        lines += [
            f"  {a.layout}: {format_bytes(a.ledger.device_total)}{_versus(a, asked)}"
            for a in nearest[:_NUM_TOLD]
        ]
    else:
        lines.append(_with_more_room())
    return PlanError("\n".join(lines))


def refuse_all(question: Question, found: Found) -> PlanError:
    """The error when no layout fits, with the three that are nearest to fitting; or none can be trained at all."""
    if found.too_big:
        lines = [f"no layout of {question.num_devices} device(s) fits.", "Nearest to fitting:"]
        lines += [f"  {a.layout}: {why_too_big(a)}" for a in found.too_big[:_NUM_TOLD]]
        return PlanError("\n".join([*lines, _with_more_room()]))
    told = found.impossible[:_NUM_TOLD]
    lines = [f"no layout of {question.num_devices} device(s) can be trained.", *(f"  {one}" for one in told)]
    if len(found.impossible) > len(told):
        lines.append(f"  and {len(found.impossible) - len(told)} more")
    return PlanError("\n".join([*lines, *_with_other_degrees(question, found)]))


def _versus(judged: Assessment, asked: Assessment) -> str:
    speed = judged.beside(asked)
    return "" if speed is None else f", about {speed} than asked"


def _with_more_room() -> str:
    return (
        "Use more devices, devices with more memory, or a smaller data.max_seq_length; a policy with smaller buckets "
        "(ds_configs/zero3_low_memory.json) helps where gradient buckets or gathered weights are the most."
    )


def _with_other_degrees(question: Question, found: Found) -> list[str]:
    """What to change where it is degrees that cannot be trained; other reasons name what mends them."""
    return [_with_another_batch(question, found)] if any(one.is_of_degree for one in found.impossible) else []


def _with_another_batch(question: Question, found: Found) -> str:
    """The batches nearest to the one asked for that a degree can keep; degrees cannot be changed by all models."""
    batch, train = question.global_sequences, question.run.train
    factors = {one.batch_factor: one.words for one in found.impossible if one.batch_factor is not None}
    if not factors:
        return "Change the number of devices or parallel.tp_size."
    near = {
        size: words
        for factor, words in factors.items()
        for size in (batch // factor * factor, -(-batch // factor) * factor)
        if size
    }
    unit = question.work.seq if train.tokens_per_step is not None else 1
    key = "train.tokens_per_step" if train.tokens_per_step is not None else "train.global_batch_size"
    sizes = sorted(near, key=lambda size: (abs(size - batch), size))[:_NUM_TOLD]
    told = ", ".join(f"{size * unit} ({near[size]})" for size in sizes)
    return (
        f"Batches that divide: {key} = {told}, and other multiples of them. Or change the number of devices: "
        f"a batch of {batch} needs data-parallel ranks that divide it."
    )
