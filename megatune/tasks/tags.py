"""Entity tags of words: BIO (IOB2) and BIOES, checked strictly, as spans and back."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatune.tasks.columns import RowError

OUTSIDE = "O"
PREFIXES = {"bio": "BI", "bioes": "BIES"}


@dataclass(frozen=True, order=True)
class Span:
    """Words `start` to `stop` (not included) are an entity of `kind`."""

    start: int
    stop: int
    kind: str


def read_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """The entities that `tags` mark. Raises RowError for the first tag that breaks the scheme."""
    spans: list[Span] = []
    begun: int | None = None
    for number, tag in enumerate(tags):
        prefix, kind = split_tag(tag, scheme, number)
        inside = prefix in ("I", "E")
        if inside and (begun is None or tags[number - 1][2:] != kind):
            raise _violation(tags, number, scheme, f"an entity of type {kind} must begin with B-{kind}")
        if not inside and begun is not None:
            if scheme == "bioes":
                raise _violation(
                    tags, number, scheme, f"the entity before it must end with E-{tags[number - 1][2:]}"
                )
            spans.append(Span(begun, number, tags[number - 1][2:]))
            begun = None
        if prefix == "B":
            begun = number
        elif prefix == "S" or (prefix == "E" and begun is not None):
            spans.append(Span(number if prefix == "S" or begun is None else begun, number + 1, kind))
            begun = None
    if begun is not None:
        if scheme == "bioes":
            raise _violation(
                tags, len(tags) - 1, scheme, f"an entity must end with E-{tags[-1][2:]}, or be S-"
            )
        spans.append(Span(begun, len(tags), tags[-1][2:]))
    return spans


def write_tags(spans: Sequence[Span], num_words: int, scheme: str) -> list[str]:
    """The tags of `num_words` words with these entities, which must not overlap.

    >>> write_tags([Span(1, 3, "PER")], 4, "bioes")
    ['O', 'B-PER', 'E-PER', 'O']
    """
    tags = [OUTSIDE] * num_words
    for span in spans:
        tags[span.start : span.stop] = [f"I-{span.kind}"] * (span.stop - span.start)
        tags[span.start] = f"B-{span.kind}"
        if scheme == "bioes":
            tags[span.stop - 1] = f"{'S' if span.stop - span.start == 1 else 'E'}-{span.kind}"
    return tags


def tag_names(kinds: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Every tag there can be, O first.

    >>> tag_names(["PER"], "bio")
    ('O', 'B-PER', 'I-PER')
    """
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in PREFIXES[scheme]))


def split_tag(tag: str, scheme: str, number: int) -> tuple[str, str]:
    """(prefix, entity type) of one tag. Raises RowError when it is none of the scheme."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    if not dash or not kind or prefix not in PREFIXES[scheme]:
        allowed = ", ".join(f"{one}-TYPE" for one in PREFIXES[scheme])
        hint = ". Tags with E- and S- are data.tag_scheme: bioes" if prefix in ("E", "S") and dash else ""
        raise RowError(
            f"has the tag {tag!r} at word {number + 1}; data.tag_scheme {scheme} knows O and {allowed}{hint}"
        )
    return prefix, kind


def _violation(tags: Sequence[str], number: int, scheme: str, rule: str) -> RowError:
    before = "the first tag" if number == 0 else f"after {tags[number - 1]!r}"
    return RowError(
        f"breaks data.tag_scheme {scheme}: the tag {tags[number]!r} at word {number + 1} ({before}): {rule}"
    )
