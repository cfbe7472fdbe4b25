"""Rows -> segments of text, with every complaint naming the place of its row; and a hash of what is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import xxhash

from megatune.data.examples import Examples
from megatune.data.labelled import Labeller
from megatune.data.rows import Row
from megatune.data.tokenize import Limit
from megatune.errors import DataError
from megatune.tasks import (
    DEFAULTS,
    TASKS,
    Exchange,
    MissingColumnsError,
    RenderChat,
    RowError,
    Segment,
    TaskOptions,
)
from megatune.tasks.exchange import exchange_segments

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Segmenting:
    """How rows become text."""

    task: str
    completion_only: bool
    columns: Mapping[str, str]
    split_name: str
    options: TaskOptions = DEFAULTS

    def read(self, row: Row, render_chat: RenderChat | None) -> tuple[list[Segment], int]:
        """The segments of `row`, and 64 bits that are equal for rows which say the same, 0 where there are none.

        Of an exchange neither its loss mask nor the chat template is part of those bits: questions are found by them
        on another day, which a template may write, than the sets were made. render_chat as tasks want it. Raises
        DataError with the place of the row, also where the text is none that could be written as UTF-8.
        """
        return self.located(row, partial(self._read, row, render_chat))

    def _read(self, row: Row, render_chat: RenderChat | None) -> tuple[list[Segment], int]:
        task, options, masked = TASKS[self.task], self.options, self.completion_only
        if task.answers is None:
            segments = task.segments(
                row.values,
                columns=self.columns,
                completion_only=masked,
                render_chat=render_chat,
                options=options,
            )
            said = [(b"%d:" % one.is_target, one.text) for one in segments]
            return segments, _hash_of_parts(said, row) if segments else 0
        exchange = task.answers.exchange(row.values, self.columns, options)
        segments = exchange_segments(exchange, options, completion_only=masked, render_chat=render_chat)
        return segments, exchange_hash(exchange, options, row) if segments else 0

    def labelled(
        self, rows: Sequence[Row], segments: Sequence[Sequence[Segment]], label: Labeller, limit: Limit
    ) -> Examples:
        """The examples that a classifier head learns from; none of rows without segments.

        Raises DataError with the place of a row.
        """
        places = [at for at, found in enumerate(segments) if found]
        examples, num_cut = [], []
        for at in places:
            found = self.located(rows[at], partial(label, rows[at].values, self.columns, self.options))
            cut = found.num_beyond(limit.max_length)
            is_dropped = cut > 0 and limit.long_rows == "drop"
            examples.append(found.example(0 if is_dropped else limit.max_length, limit.side))
            num_cut.append(len(found.input_ids) if is_dropped else cut)
        return Examples.joined(examples, places, num_cut)

    def located(self, row: Row, make: Callable[[], Made]) -> Made:
        """What `make` makes of `row`. Raises DataError, with the place of the row, for what RowError says."""
        try:
            return make()
        except MissingColumnsError as missing:
            raise DataError(f"{row.where} {missing}. {self._hint(missing)}") from None
        except RowError as error:
            raise DataError(f"{row.where} {error}") from None

    def _hint(self, missing: MissingColumnsError) -> str:
        if missing.without_value:
            return f"Give {missing.without_value[0]} a value in this row, or take the row out"
        found = missing.found
        ours, theirs = TASKS[self.task].forms[0][0], found[0] if found else "your_column"
        return (
            f"Say which of your columns to read with data.{self.split_name}.columns, "
            f"for example {{{ours}: {theirs}}}"
        )


def id_hash(values: Mapping[str, object]) -> int:
    """64 bits of the column `id`, 0 where a row has none: a csv file has a blank cell there, and only texts."""
    found = values.get("id")
    text = "" if found is None else str(found).strip()
    return (xxhash.xxh3_64_intdigest(text.encode(errors="backslashreplace")) or 1) if text else 0


def exchange_hash(exchange: Exchange, options: TaskOptions, row: Row) -> int:
    """The hash that `Segmenting.read` gives a row with something to ask and to learn."""
    if not options.chat:
        return _hash_of_parts([(b"", exchange.prompt), (b"", exchange.target)], row)
    # Many chat templates strip what they are given: rows that they write alike must stay on one side.
    return _hash_of_parts([(b"", exchange.prompt.strip()), (b"", exchange.answer)], row)


def _hash_of_parts(parts: Sequence[tuple[bytes, str]], row: Row) -> int:
    """Of texts, each with what is known of it; one text alone by itself."""
    try:
        if len(parts) == 1:
            return xxhash.xxh3_64_intdigest(parts[0][1].encode())
        digest = xxhash.xxh3_64()
        for known, written in parts:
            text = written.encode()
            digest.update(b"%b%d:" % (known, len(text)))
            digest.update(text)
        return digest.intdigest()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.where} holds half of a character (\\u{ord(error.object[error.start]):04x} without its other "
            "half): it was cut in two before it was written. Remove it, or write the row anew"
        ) from None
