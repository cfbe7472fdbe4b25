"""Start ranks on this machine that work one thing out together and leave the answer in a file."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatune.errors import LaunchError, UserError
from megatune.launch.local import run_ranks

RESULT = "result.json"
"""Beside the question."""


def ask_ranks(
    module: str, question: Mapping[str, Any], *, num_ranks: int, show: bool = False
) -> dict[str, Any]:
    """What the ranks of `python -m MODULE QUESTION.json` find out. `show`: also what rank 0 prints.

    Raises UserError with the words of a rank that refused the question, LaunchError when one failed.
    """
    with tempfile.TemporaryDirectory(prefix="megatune-ask-") as name:
        folder = Path(name)
        path = folder / "question.json"
        path.write_text(json.dumps(question), encoding="utf-8")
        result = run_ranks(
            [sys.executable, "-m", module, str(path)],
            num_ranks=num_ranks,
            log_dir=folder / "logs",
            echo_rank=0 if show else None,
        )
        if result.exit_code == UserError.exit_code:
            raise UserError(result.failure_text.removeprefix("megatune: "))
        if result.exit_code != 0:
            raise LaunchError(result.failure_text or "the ranks were stopped")
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return found
