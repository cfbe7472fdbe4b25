"""What a set of rows looks like: collected while it is written, told before anybody trains on it."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatune.data.pool import PoolBlock, Values
from megatune.data.rows import place_name
from megatune.data.tally import Tally, answer_hash
from megatune.errors import DataError
from megatune.units import format_ratio

NUM_BINS = 20
_NUM_LONGEST = 10
_LOPSIDED = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the user's rows; what the user should be told."""

    num_rows_read: int
    """Those that were dropped included; validation rows that were taken out are not."""
    num_truncated: int
    """Examples that are trained on, but without their end."""
    num_tokens_cut: int
    """Tokens that were left out of those."""
    num_divided: int
    """Rows that became several examples."""
    num_empty: int
    """Rows dropped because they hold no answer, or nothing to answer: nothing to train on."""
    num_too_long: int
    """Rows dropped because of their length, or because all there was to train on lay beyond the maximum."""
    first_too_long: str | None
    """The place of the first of those."""
    lost_labels: list[str]
    """Answers that those have, and no row that is left."""
    num_without_input: int
    """Rows with an answer and an empty question."""
    num_duplicates: int
    """Rows that say what a row before them says."""
    num_duplicate_ids: int
    """Rows whose column `id` holds what a row before them holds in it."""
    first_duplicate_id: tuple[str, str] | None
    """Places of the first of those, and of the row before it."""
    num_unknown: int
    """Tokens that stand for what the tokenizer has no token for."""
    num_usable: int
    """Rows that are trained on, each once."""
    fill_ratio: float
    """The share of the rows, at full length, that is tokens and not padding; 0 without rows."""
    target_ratio: float
    """The share of the tokens that a loss is taken on; 0 without tokens."""
    length_counts: list[int]
    """Examples, and rows dropped as too long, by their length before anything was cut: NUM_BINS equal steps up to
    the maximum, and longer ones."""
    longest: list[tuple[int, str, int, int | None]]
    """Tokens, file, row and line of the longest rows, dropped ones too, before anything was cut."""
    labels: dict[str, int] | None
    """How often each answer comes, where they are few and short; None elsewhere."""

    def notices(self, max_seq_length: int) -> list[str]:
        """One sentence for each thing that a user would want to know."""
        every = self.num_rows_read
        found = []
        if self.num_truncated:
            found.append(
                f"{self.num_truncated} of {every} rows were cut at data.max_seq_length = {max_seq_length} "
                f"({self.num_tokens_cut} tokens left out)"
            )
        if self.num_divided:
            found.append(
                f"{self.num_divided} of {every} rows were divided into examples of {max_seq_length} tokens"
            )
        if self.num_too_long:
            found[:0] = [self._too_long(max_seq_length)]
        if self.num_empty:
            found.append(
                f"{self.num_empty} of {every} rows were dropped: they hold nothing to learn, or no input for it"
            )
        if self.num_without_input:
            found.append(f"{self.num_without_input} of {every} rows have an answer, but an empty question")
        if self.num_duplicates:
            found.append(f"{self.num_duplicates} of {every} rows say the same as a row before them")
        if self.num_duplicate_ids and self.first_duplicate_id:
            later, earlier = self.first_duplicate_id
            found.append(
                f"{self.num_duplicate_ids} of {every} rows have the id of a row before them; the first: {later}, as "
                f"{earlier}"
            )
        if self.num_unknown:
            found.append(
                f"{self.num_unknown} tokens are unknown to the tokenizer, and stand for all it cannot write"
            )
        if self.labels and max(self.labels.values()) >= _LOPSIDED * min(self.labels.values()):
            (most, num_most), (least, num_least) = (
                choose(self.labels.items(), key=lambda one: one[1]) for choose in (max, min)
            )
            found.append(f"the answers are lopsided: {most!r} comes {num_most} times, {least!r} {num_least}")
        alike = _alike(self.labels or {})
        if alike:
            found.append(
                f"answers that differ in nothing but case are told apart: {', '.join(map(repr, alike))}"
            )
        return found

    def refuse_nothing(self, split: str, max_seq_length: int, *, may_be_without_loss: bool) -> None:
        """Raise DataError, with what became of the rows, for a set in which no loss could be taken on anything.

        may_be_without_loss: rows that are too long for a loss are taken, for their answers can be scored.
        """
        if self.num_usable or (may_be_without_loss and self.num_too_long):
            return
        is_train = split == "train"
        too_long = (
            f", and {self.num_too_long} are too long: there it begins after data.max_seq_length = {max_seq_length} "
            "tokens, or data.long_rows drops them. Raise data.max_seq_length, cut rows at their beginning "
            "(data.truncation_side: left), or shorten the prompt (data.template)"
        )
        raise DataError(
            f"data.{split} has nothing to {'train on' if is_train else 'take a loss on'}: of {self.num_rows_read} rows "
            f"{self.num_empty} hold no text to {'learn' if is_train else 'score'}"
            f"{too_long if self.num_too_long else ''}"
        )

    def _too_long(self, max_seq_length: int) -> str:
        """Of the rows dropped because of their length; with what to do where they were many, or all of a kind."""
        told = (
            f"{self.num_too_long} of {self.num_rows_read} rows were dropped: longer than data.long_rows allows, or "
            f"what is to be learned begins after {max_seq_length} tokens; the first is {self.first_too_long}"
        )
        if not self.lost_labels and 2 * self.num_too_long < self.num_rows_read:
            return told
        shown = ", ".join(map(repr, self.lost_labels[:5])) + (", ..." if len(self.lost_labels) > 5 else "")
        lost = f". No row is left with the answer {shown}" if self.lost_labels else ""
        return (
            f"WARNING: {told}{lost}. To keep them, cut their beginning (data.long_rows: truncate, "
            f"data.truncation_side: left), raise data.max_seq_length (the longest has {self.longest[0][0]} tokens), or "
            "put less before the answer (data.template)"
        )


def _alike(labels: Mapping[str, int]) -> list[str]:
    """The first labels that are equal but for capital letters."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(label.casefold(), []).append(label)
    return sorted(next((group for group in groups.values() if len(group) > 1), []))


@dataclass(kw_only=True)
class Findings:
    """Collects what a report says, example by example, in memory that does not grow with them."""

    max_seq_length: int
    labels_of_files: Sequence[str]
    num_examples: int = 0
    num_usable: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    num_truncated: int = 0
    num_tokens_cut: int = 0
    num_divided: int = 0
    num_unknown: int = 0
    num_without_input: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    """How often each comes, by its hash."""
    length_counts: Values = field(default_factory=lambda: np.zeros(NUM_BINS + 1, dtype=np.int64))
    first_too_long: str | None = None
    dropped_answers: set[int] = field(default_factory=set)
    """Of rows that were dropped as too long, by their hashes."""
    _longest: list[tuple[int, int, int, int]] = field(default_factory=list)

    def see(self, block: PoolBlock, chosen: Values) -> None:
        """Count the `chosen` records of a block."""
        lengths, cut = chosen["length"].astype(np.int64), chosen["cut"]
        rows = chosen[chosen["piece"] == 0]
        self.num_examples += len(chosen)
        self.num_usable += len(rows)
        self.num_without_input += int(rows["no_input"].sum())
        self._see_answers(rows["answer"])
        self.num_divided += int((chosen["piece"] == 1).sum())
        self.num_tokens += int(lengths.sum())
        self.num_targets += int(chosen["targets"].sum())
        self.num_truncated += int((cut > 0).sum())
        self.num_tokens_cut += int(cut.sum())
        self.num_unknown += int(chosen["unknown"].sum())
        self._see_lengths(block, chosen, lengths + cut)

    def see_dropped(self, block: PoolBlock) -> None:
        """Count the lengths of the rows of a block that were dropped as too long."""
        dropped = block.dropped
        self._see_lengths(block, dropped, dropped["length"].astype(np.int64))
        self.dropped_answers.update(np.unique(dropped["answer"]).tolist())
        if len(dropped) and self.first_too_long is None:
            self.first_too_long = self._place(block, dropped[0])

    def _see_lengths(self, block: PoolBlock, records: Values, whole: Values) -> None:
        step = self.max_seq_length / NUM_BINS
        bins = np.minimum(np.ceil(whole / step).astype(np.int64) - 1, NUM_BINS)
        self.length_counts += np.bincount(bins, minlength=NUM_BINS + 1)
        self._see_longest(block, records, whole)

    def _see_answers(self, hashes: Values) -> None:
        values, counts = np.unique(hashes[hashes != 0], return_counts=True)
        self.answers.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def _see_longest(self, block: PoolBlock, records: Values, whole: Values) -> None:
        shortest = self._longest[0][0] if len(self._longest) == _NUM_LONGEST else 0
        longer = np.flatnonzero(whole > shortest)
        for at in longer[np.argsort(-whole[longer], kind="stable")[:_NUM_LONGEST]].tolist():
            row, line = _row_and_line(block, records[at])
            # Of equal ones the first is kept.
            entry = (int(whole[at]), -block.file, -row, line or 0)
            if len(self._longest) < _NUM_LONGEST:
                heapq.heappush(self._longest, entry)
            elif entry > self._longest[0]:
                heapq.heapreplace(self._longest, entry)

    def _place(self, block: PoolBlock, record: Values) -> str:
        return place_name(self.labels_of_files[block.file], *_row_and_line(block, record))

    def report(
        self,
        tally: Tally,
        *,
        num_duplicates: int,
        num_duplicate_ids: int,
        first_duplicate_id: tuple[str, str] | None,
        num_rows: int,
        num_packed_tokens: int,
    ) -> Report:
        """The report of a set of `num_rows` rows with `num_packed_tokens` in them."""
        longest = sorted(self._longest, reverse=True)
        return Report(
            num_rows_read=self.num_usable + tally.num_empty + tally.num_too_long,
            num_truncated=self.num_truncated,
            num_tokens_cut=self.num_tokens_cut,
            num_divided=self.num_divided,
            num_empty=tally.num_empty,
            num_too_long=tally.num_too_long,
            first_too_long=self.first_too_long,
            lost_labels=self._lost(tally.labels or ()),
            num_without_input=self.num_without_input,
            num_duplicates=num_duplicates,
            num_duplicate_ids=num_duplicate_ids,
            first_duplicate_id=first_duplicate_id,
            num_unknown=self.num_unknown,
            num_usable=self.num_usable,
            fill_ratio=num_packed_tokens / max(1, num_rows * self.max_seq_length),
            target_ratio=self.num_targets / max(1, self.num_tokens),
            length_counts=self.length_counts.tolist(),
            longest=[
                (length, self.labels_of_files[-file], -row, line or None)
                for length, file, row, line in longest
            ],
            labels=None if tally.labels is None else self._labels(tally.labels),
        )

    def _lost(self, every: Iterable[str]) -> list[str]:
        hashes = {label: answer_hash(label) for label in every}
        return sorted(
            label for label, one in hashes.items() if one in self.dropped_answers and not self.answers[one]
        )

    def _labels(self, every: Iterable[str]) -> dict[str, int]:
        """Those of `every` answer that the rows of this set have, the most frequent first."""
        counts = {label: self.answers[answer_hash(label)] for label in every}
        return {
            label: counts[label]
            for label in sorted(counts, key=lambda one: (-counts[one], one))
            if counts[label]
        }


def _row_and_line(block: PoolBlock, record: Values) -> tuple[int, int | None]:
    """In the file; None where it has no lines."""
    line = int(record["line"])
    return block.rows_before + int(record["row"]), block.lines_before + line if line else None


def report_from(fields: Mapping[str, Any]) -> Report:
    """The report that a manifest holds. Raises TypeError where it is none."""
    longest = [
        (int(length), str(file), int(row), None if line is None else int(line))
        for length, file, row, line in fields["longest"]
    ]
    pair = fields["first_duplicate_id"]
    first = None if pair is None else (str(pair[0]), str(pair[1]))
    return Report(**{**fields, "longest": longest, "first_duplicate_id": first})


def report_lines(name: str, report: Report, max_seq_length: int) -> list[str]:
    """The report for people: a histogram of lengths, the longest rows, the answers."""
    lines = [
        f"{name}: {format_ratio(report.target_ratio)} of the tokens are trained; lengths of the rows in tokens:"
    ]
    most = max(report.length_counts)
    for number, count in enumerate(report.length_counts):
        if count:
            bar = "█" * max(1, round(40 * count / most))
            lines.append(f"  {_bin_name(number, max_seq_length):>15} {count:>9}  {bar}")
    lines.append(f"  longest: {_places(report.longest)}")
    if report.labels:
        total = sum(report.labels.values())
        shown = list(report.labels.items())[:12]
        lines.append(
            "  answers: " + ", ".join(f"{label!r} {format_ratio(count / total)}" for label, count in shown)
        )
    return lines


def _places(longest: Sequence[tuple[int, str, int, int | None]]) -> str:
    """On one line: a file is named where it is another one than before."""
    found, last = [], None
    for length, file, row, line in longest:
        place = place_name("", row, line).lstrip() if file == last else place_name(file, row, line)
        found.append(f"{length} {place}")
        last = file
    return "; ".join(found)


def _bin_name(number: int, max_seq_length: int) -> str:
    step = max_seq_length / NUM_BINS
    if number == NUM_BINS:
        return f"over {max_seq_length}"
    return f"{int(number * step) + 1} - {int((number + 1) * step)}"
