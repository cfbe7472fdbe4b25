"""What became of the rows of a share, and which short answers they have."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megatune.tasks import Segment

_MOST_LABELS = 200
_LONGEST_LABEL_CHARS = 80


@dataclass(kw_only=True)
class Tally:
    """What became of rows."""

    num_rows: int = 0
    num_empty: int = 0
    num_too_long: int = 0
    labels: Counter[str] | None = field(default_factory=Counter)
    """Short answers and how often they come; None where there are too many to be classes."""
    max_token_id: int = 0

    @property
    def num_kept(self) -> int:
        """Rows that became examples."""
        return self.num_rows - self.num_empty - self.num_too_long

    def without_dropped(self) -> "Tally":
        """The same where the rows without an example are told elsewhere."""
        return Tally(num_rows=self.num_rows, labels=self.labels, max_token_id=self.max_token_id)

    def add(self, other: "Tally") -> None:
        """Count what became of other rows, too."""
        self.num_rows += other.num_rows
        self.num_empty += other.num_empty
        self.num_too_long += other.num_too_long
        self.max_token_id = max(self.max_token_id, other.max_token_id)
        if self.labels is not None:
            self.labels = None if other.labels is None else _few(self.labels + other.labels)

    def as_fields(self) -> dict[str, object]:
        """What goes through JSON. Not `asdict`, which makes a counter of the pairs in a counter."""
        return {**vars(self), "labels": None if self.labels is None else dict(self.labels)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Tally":
        """The tally whose `as_fields` these are."""
        labels = fields["labels"]
        return cls(**{**fields, "labels": None if labels is None else Counter(labels)})

    def see(
        self,
        rows: Sequence[Sequence[Segment]],
        *,
        is_kept: npt.NDArray[np.bool_],
        is_dropped: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.uint64]:
        """Count the rows of a batch and their answers; gives (rows,): a hash of each answer, 0 for none.

        is_kept: rows that became examples. is_dropped: rows that were too long for that.
        Which of the answers belong to one side of a divided pool is counted by their hashes.
        """
        self.num_rows += len(rows)
        self.num_too_long += int(is_dropped.sum())
        self.num_empty += len(rows) - int((is_kept | is_dropped).sum())
        found = np.zeros(len(rows), dtype=np.uint64)
        for at in np.flatnonzero(is_kept | is_dropped).tolist():
            if self.labels is None:
                break
            found[at] = self._see_answer(rows[at]) if is_kept[at] else self._see_dropped(rows[at])
        return found

    def _see_answer(self, segments: Sequence[Segment]) -> int:
        """The hash of the answer of a row that has one behind something that is only read."""
        assert self.labels is not None, "see asks"
        if not segments or all(segment.is_target for segment in segments):
            self.labels = None
            return 0
        label = _answer(segments)
        self.labels[label] += 1
        self.labels = _few(self.labels) if len(label) <= _LONGEST_LABEL_CHARS else None
        return answer_hash(label)

    def _see_dropped(self, segments: Sequence[Segment]) -> int:
        """The hash of the answer of a row that is left out; it may be the only row that has it.

        One that is no class says nothing of the others.
        """
        assert self.labels is not None, "see asks"
        label = _answer(segments)
        if all(one.is_target for one in segments) or len(label) > _LONGEST_LABEL_CHARS:
            return 0
        self.labels[label] += 1
        self.labels = _few(self.labels)
        return answer_hash(label)


def _answer(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments if segment.is_target).strip()


def answer_hash(label: str) -> int:
    """64 bits of an answer; never 0."""
    return xxhash.xxh3_64_intdigest(label.encode(errors="backslashreplace")) or 1


def lacks_input(segments: Sequence[Segment]) -> bool:
    """Whether a row has an answer that is learned and nothing to answer.

    Only of rows with columns `prompt` and `completion`, in task `text` and in `dialogue` without a chat template:
    tasks with answers give no segments for a row without input (`Exchange.prompt` is empty), and a chat template
    writes something before each answer.
    """
    if len(segments) < 2:
        return False
    read = [segment.text for segment in segments if not segment.is_target]
    return len(read) > 0 and not any(text.strip() for text in read)


def _few(labels: Counter[str]) -> Counter[str] | None:
    return labels if len(labels) <= _MOST_LABELS else None
