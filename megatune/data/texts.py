"""The text of a row, whatever is read or learned of it: what a tokenizer is trained on."""

from collections.abc import Iterator, Mapping

from megatune.tasks import TASKS


def texts_of(values: Mapping[str, object], task: str, columns: Mapping[str, str]) -> Iterator[str]:
    """The texts in the columns that `task` reads, and in the messages of conversations."""
    names = dict.fromkeys(columns.get(name, name) for form in TASKS[task].forms for name in form)
    for name in names:
        yield from _texts(values.get(name))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("content"))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
