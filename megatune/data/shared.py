"""Several processes write the parts of one pool, and stop at the first problem that any of them meets.

Processes of mpirun and workers of one machine do the same here. All of them go through the same blocks
of rows and each parses and tokenises its own; which rows a block has does not depend on who reads it,
so the pool, and the complaint about a row that cannot be used, are those of a single process.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.data.part import OnBlock, PartError, PartSettings, Share, write_part
from megatune.data.read import Files, all_blocks
from megatune.data.tally import Tally
from megatune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STOP = "stopped-at"
_NO_BLOCK = 2**62


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all of them work on."""

    sources: tuple[Files, ...]
    tokenizer: "PreTrainedTokenizerBase"
    settings: PartSettings
    scratch: Path
    """A folder that all of them see."""

    @property
    def num_bytes(self) -> int:
        """Of all files, on the disk."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def labels(self) -> list[str]:
        """What to call each file in messages, as `FileBlock.file` counts them."""
        return [label for source in self.sources for label in source.labels]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why one process could not go on."""

    block: int
    text: str


def part_folder(scratch: Path, index: int) -> Path:
    """Where process `index` writes its part."""
    return scratch / f"part-{index:05d}"


def write_share(
    job: Job, share: Share, on_block: OnBlock, guard: Callable[[], AbstractContextManager[None]]
) -> Tally | Problem:
    """Write the part of one process. guard: a block to write files in."""
    stop = _Stop(job.scratch / _STOP)
    try:
        with guard():
            folder = part_folder(job.scratch, share.index)
            folder.mkdir()
            return write_part(
                all_blocks(job.sources),
                folder,
                job.tokenizer,
                job.settings,
                share=share,
                on_block=on_block,
                may_go_on=stop.is_behind,
            )
    except PartError as error:
        return stop.at(Problem(block=error.block, text=str(error)))
    except DataError as error:
        return stop.at(Problem(block=_NO_BLOCK, text=str(error)))


def tallies_of(results: Sequence[Tally | Problem]) -> list[Tally]:
    """The tallies of all processes. Raises the DataError that a single process would have raised."""
    problems = [result for result in results if isinstance(result, Problem)]
    if problems:
        raise DataError(min(problems, key=lambda problem: problem.block).text)
    return [result for result in results if isinstance(result, Tally)]


class OnShare:
    """Sums up what one process of several has done, and tells it as if all were equally fast."""

    def __init__(self, update: Callable[[int, int], None], share: Share) -> None:
        self._update, self._share = update, share
        self._num_rows = self._num_bytes = 0

    def __call__(self, num_rows: int, num_bytes: int) -> None:
        self._num_rows += num_rows
        self._num_bytes += num_bytes
        self._update(self._num_rows * self._share.count, self._num_bytes)


class _Stop:
    """Where the first process that met a problem met it: the others need not go further."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def is_behind(self, block: int) -> bool:
        """Whether `block` is before the problem, if there is one."""
        try:
            return block < int(self._file.read_text())
        except FileNotFoundError:
            return True

    def at(self, problem: Problem) -> Problem:
        """Tell the others; gives the problem again."""
        scratch = self._file.with_name(f"{self._file.name}-{os.urandom(8).hex()}")
        try:
            scratch.write_text(str(problem.block))
            scratch.replace(self._file)
        except OSError:  # a full disk, say: then the others work on to their end, and are told there
            return problem
        return problem
