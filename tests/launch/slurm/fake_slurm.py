"""Slurm's programs as a function: answers by the program's name, and a list of what was asked."""

from collections.abc import Callable, Sequence

from megatune.launch.slurm.command import Answer

SEPARATOR = "\x1f"


def said(out: str = "", *, err: str = "", code: int = 0) -> Answer:
    return Answer(code=code, out=out, err=err)


def queue_line(
    job_id: str,
    state: str,
    *,
    reason: str = "None",
    nodes: str = "",
    num_nodes: int = 1,
    left: str = "1:00:00",
    limit: str = "2:00:00",
) -> str:
    """A line as squeue prints it for megatune."""
    return SEPARATOR.join([job_id, state, reason, nodes, str(num_nodes), left, limit]) + "\n"


def account_line(
    record: str,
    state: str,
    *,
    code: str = "0:0",
    start: str = "2026-11-23T10:00:00",
    end: str = "2026-11-23T11:00:00",
    nodes: str = "n[1-2]",
) -> str:
    """A line as sacct prints it for megatune."""
    return "|".join([record, state, code, start, end, "2", "120", nodes]) + "\n"


class FakeSlurm:
    """A `Call`: gives the answers it was made with. An answer may be a function of the command."""

    def __init__(self, **answers: Answer | Callable[[Sequence[str]], Answer]) -> None:
        self._answers = answers
        self.asked: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Answer:
        self.asked.append(list(command))
        answer = self._answers.get(command[0], said())
        return answer(command) if callable(answer) else answer

    def commands(self, program: str) -> list[list[str]]:
        """What `program` was asked, without its name."""
        return [command[1:] for command in self.asked if command[0] == program]
