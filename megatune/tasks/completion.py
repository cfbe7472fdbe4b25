"""The prompt + completion form, which several tasks share."""

from collections.abc import Mapping

from megatune.tasks.columns import text_of
from megatune.tasks.segments import Segment

FORM = ("prompt", "completion")


def completion_segments(values: Mapping[str, object], *, completion_only: bool) -> list[Segment]:
    """The prompt, then the completion, with nothing in between: a blank belongs to the data.

    An empty completion gives no segments: a model must not learn to end where an answer is missing.
    """
    prompt, completion = text_of(values["prompt"], "prompt"), text_of(values["completion"], "completion")
    if not completion.strip():
        return []
    return [Segment(prompt, is_target=not completion_only), Segment(completion, is_target=True)]
