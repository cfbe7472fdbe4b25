"""What the run file says about a task beside its name."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Settings of `data` that decide what a row becomes, and how answers to it are scored; the defaults are those
    of the run file."""

    template: str | None = None
    """jinja2 text of the prompt; None is the task's own."""
    labels: tuple[str, ...] = ()
    """The labels of a classification, or the entity types of ner; empty when nothing has named them yet."""
    multi_label: bool = False
    """A row of a classification has a list of labels, maybe an empty one."""
    tag_scheme: str = "bio"
    """How the tags of ner mark entities: bio or bioes."""
    source_lang: str | None = None
    target_lang: str | None = None
    chat: bool = False
    """Put prompt and answer through the chat template of the tokenizer, as one exchange."""
    bleu_tokenizer: str = "13a"
    """What cuts translations into words for BLEU, by sacrebleu's name."""


FOR_SCORES = frozenset({"bleu_tokenizer"})
"""Fields that change no row."""
DEFAULTS = TaskOptions()
