"""Reuters R8: tables of label and story, as the Orange text add-on has them -> rows of a classification."""

from pathlib import Path

from megatune.errors import DataError

_HEADER = ["Category\tText", "d\tstring", "class"]
"""Names, types and roles of the two columns."""


def read_topics(path: Path) -> list[dict[str, str]]:
    """`{text, label}` rows in the order of the file. Raises DataError when it is another kind of table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if [line.strip() for line in lines[:3]] != _HEADER:
        raise DataError(f"{path} does not begin with the three header lines of Reuters R8")
    rows = []
    for number, line in enumerate(lines[3:], start=4):
        label, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not label.strip() or not text.strip():
            raise DataError(f"{path}:{number}: no label and story with a tab between them")
        rows.append({"text": text.strip(), "label": label.strip()})
    return rows
