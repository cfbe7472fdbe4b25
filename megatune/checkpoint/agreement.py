"""Acts that all ranks do, of which the failure of one is the failure of all."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.engine.world import World
from megatune.errors import CheckpointError, SaveError


@dataclass(frozen=True)
class Outcome:
    """What an act has come to on this rank."""

    value: Any = None
    error: Exception | None = None


def attempt(act: Callable[[], Any]) -> Outcome:
    """Run `act`, in whatever thread; whatever it raises, the other ranks must not wait for this one."""
    try:
        return Outcome(value=act())
    except Exception as error:
        return Outcome(error=error)


@dataclass(frozen=True)
class Agreement:
    """Shares the outcomes of one save's acts, and takes away what it wrote when one has failed."""

    world: World
    unfinished: Path

    def settle(self, own: Outcome) -> list[Any]:
        """All ranks' values, in rank order. Collective: every rank calls it.

        Raises when a rank has failed. One that failed for no reason of its disk raises its own error, for
        the traceback; the others raise a MegatuneError with its words.
        """
        told = self._words(own.error)
        answers = self.world.gather_objects((told, isinstance(own.error, (OSError, SaveError)), own.value))
        problems = [(words, is_disk) for words, is_disk, _ in answers if words]
        if not problems:
            return [value for _, _, value in answers]
        left = self.world.first_rank(self._clean_up)
        if own.error is not None and not isinstance(own.error, (OSError, CheckpointError)):
            raise own.error
        kind = SaveError if all(is_disk for _, is_disk in problems) else CheckpointError
        raise kind(
            "the checkpoint could not be saved; older ones are untouched. "
            + " ".join(words for words, _ in problems)
            + left
        )

    def _words(self, error: Exception | None) -> str | None:
        if error is None:
            return None
        kind = "" if isinstance(error, (OSError, CheckpointError)) else f"{type(error).__name__}: "
        return f"rank {self.world.rank}: {kind}{error}"

    def _clean_up(self) -> str:
        """Give the space back at once; a disk that does not let us is one more thing to tell."""
        try:
            if self.unfinished.exists():
                shutil.rmtree(self.unfinished)
        except OSError as error:
            return f" {self.unfinished} could not be removed: {error.strerror}."
        return ""
