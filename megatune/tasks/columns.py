"""Find the columns that a task reads in a row, under the user's own names for them."""

from collections.abc import Mapping, Sequence

from megatune.errors import DataError


class RowError(DataError):
    """A row cannot be used. The message is a sentence that follows the place: `train.jsonl:3 has ...`."""


class MissingColumnsError(RowError):
    """A row has none of the forms that its task reads."""

    def __init__(
        self, row: Mapping[str, object], forms: Sequence[Sequence[str]], columns: Mapping[str, str]
    ) -> None:
        self.found = present_columns(row)
        self.wanted = " or ".join(_form_name(form, columns) for form in forms)
        asked = dict.fromkeys(columns.get(name, name) for form in forms for name in form)
        self.without_value = [name for name in asked if name in row and row[name] is None]
        """Columns that the task reads and that hold nothing in this row."""
        found = ", ".join(self.found) or "no column with a value"
        nulls = f"; without a value: {', '.join(self.without_value)}" if self.without_value else ""
        super().__init__(f"lacks a column: found {found}{nulls}; accepted: {self.wanted}")


def choose_form(
    row: Mapping[str, object], forms: Sequence[Sequence[str]], columns: Mapping[str, str]
) -> dict[str, object]:
    """The values of the first form that the row has in full, by megatune's own names.

    A form that `columns` names comes before the others: who maps `prompt` wants prompts, even
    where the file also has a `text` column. A null counts as absent, so files may mix forms.
    """
    # Asked for every row, and most files map no column.
    named_first = (
        sorted(forms, key=lambda form: not any(name in columns for name in form)) if columns else forms
    )
    for form in named_first:
        values = {}
        for name in form:
            value = row.get(columns.get(name, name))
            if value is None:
                break
            values[name] = value
        else:
            return values
    raise MissingColumnsError(row, forms, columns)


def text_of(value: object, name: str) -> str:
    """`value` as text; raises RowError for anything else than a string."""
    if not isinstance(value, str):
        raise RowError(f"has a {name} that is {_described(value)}; it must be text")
    return value


def present_columns(row: Mapping[str, object]) -> list[str]:
    """The columns of a row that hold a value."""
    return [name for name, value in row.items() if value is not None]


def _form_name(form: Sequence[str], columns: Mapping[str, str]) -> str:
    """`prompt (your column 'question') + completion`."""
    named = [f"{name} (your column {columns[name]!r})" if name in columns else name for name in form]
    return " + ".join(named)


def _described(value: object) -> str:
    shown = repr(value)
    return f"a {type(value).__name__} ({shown if len(shown) <= 60 else shown[:57] + '...'})"
