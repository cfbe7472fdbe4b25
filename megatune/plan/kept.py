"""Records of places (a cluster's partition, or a host) that are kept in one file for later plans."""

import json
from pathlib import Path
from typing import Any

from megatune.files import write_text_atomic

_SCHEMA = 1


def read_kept(file: Path, name: str) -> dict[str, Any]:
    """Place -> its record, out of the entry `name`; {} where there is no file, a damaged one, or another version's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # none yet, or damaged: it is measured again
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        return {}
    return dict(content[name])


def write_kept(file: Path, name: str, records: dict[str, Any]) -> None:
    """Put the records of all places into `file`.

    Two writers at the same moment: what one has added may be lost, the file stays whole. Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(file, json.dumps({"schema": _SCHEMA, name: records}, indent=1) + "\n")
