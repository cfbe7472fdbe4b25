"""Start ranks on this machine that work one thing out together and leave the answer in a file."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatune.errors import LaunchError, UserError
from megatune.launch.local import run_ranks
from megatune.launch.processes import module_command, start_process

RESULT = "result.json"
"""Beside the question."""


def ask_ranks(
    module: str,
    question: Mapping[str, Any],
    *,
    num_ranks: int,
    show: bool = False,
    reads_input: bool = False,
) -> dict[str, Any]:
    """What the ranks of `python -m MODULE QUESTION.json` find out. `show`: also what rank 0 prints.

    reads_input: rank 0 reads the standard input of this process, which must leave it alone meanwhile.
    Raises UserError with the words of a rank that refused the question, LaunchError when one failed.
    """
    with tempfile.TemporaryDirectory(prefix="megatune-ask-") as name:
        folder = Path(name)
        path = folder / "question.json"
        path.write_text(json.dumps(question), encoding="utf-8")
        result = run_ranks(
            module_command(module, str(path)),
            num_ranks=num_ranks,
            log_dir=folder / "logs",
            echo_rank=0 if show else None,
            start=_start_with_input if reads_input else start_process,
        )
        if result.exit_code == UserError.exit_code:
            raise UserError(result.failure_text.removeprefix("megatune: "))
        if result.exit_code != 0:
            raise LaunchError(result.failure_text or "the ranks were stopped")
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return found


def _start_with_input(
    command: Sequence[str], *, environment: Mapping[str, str], stdout: int, stderr: int
) -> "subprocess.Popen[bytes]":
    stdin = sys.stdin.fileno() if environment["RANK"] == "0" else subprocess.DEVNULL
    return start_process(command, environment=environment, stdout=stdout, stderr=stderr, stdin=stdin)
