"""The text of a row, whatever is read or learned of it: what a tokenizer is trained on."""

from collections.abc import Iterator, Mapping

from megatune.tasks import TASKS


def texts_of(values: Mapping[str, object], task: str, columns: Mapping[str, str]) -> Iterator[str]:
    """The texts in the columns that `task` reads, those that it may do without among them."""
    for name in sorted({columns.get(name, name) for name in TASKS[task].columns}):
        yield from _texts(values.get(name))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        # A message has a role beside its text; a pair of languages, or answers with their places, are texts by name.
        for item in [value["content"]] if "content" in value else value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
