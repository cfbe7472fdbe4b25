"""The folder of a tune. Its journal is one folder a trial: taken by renaming it into place, ended by a file.

Both are atomic on shared file systems too, so that several workers need no lock, and a kill at any moment leaves
trials that are whole, or that nobody works on any more.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatune.errors import MegatuneError
from megatune.files import write_text_atomic
from megatune.tune.folder import TrialsFolder
from megatune.tune.layouts.measure import Measure

GOOD = "ok"
SLOW = "slow"
"""Ended early: it could not win any more. Its steps were measured, and teach the forecast."""
INTERRUPTED = "interrupted"
"""The tune was stopped, or its worker killed: the trial does not count and is made again."""
MEASURED = (GOOD, SLOW)
_CLAIM, _RESULT = "trial.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a trial ended."""

    outcome: str
    """ok, slow, interrupted; memory, hang, timeout, crash or refused."""
    why: str | None
    seconds: float
    measure: Measure | None

    def as_object(self) -> dict[str, Any]:
        measured = None if self.measure is None else self.measure.as_object()
        return {"outcome": self.outcome, "why": self.why, "seconds": self.seconds, "measure": measured}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of one candidate."""

    number: int
    candidate: int
    rung: int
    """0: the first look. Higher ones are for the candidates that were kept."""
    steps: int
    """Timed steps that it was to take."""
    ended: Ended | None
    """None while it runs."""

    @property
    def counts(self) -> bool:
        return self.ended is None or self.ended.outcome != INTERRUPTED

    @property
    def measure(self) -> Measure | None:
        """What it measured, when it ended well enough to be believed."""
        return self.ended.measure if self.ended and self.ended.outcome in MEASURED else None


@dataclass(frozen=True)
class TuneFolder(TrialsFolder):
    """Paths below `path`, which is `tune` in the run folder."""

    command: ClassVar[str] = "tune"

    @property
    def definition(self) -> Path:
        """What is tuned and how: two tunes with different ones are two tunes."""
        return self.path / "tune.json"

    @property
    def best_policy(self) -> Path:
        """The DeepSpeed policy of the winner, where it has values of its own."""
        return self.path / "best_ds_config.json"

    @property
    def model(self) -> Path:
        """The run's model without dropout, where it has any."""
        return self.path / "model"


def read_trials(folder: TuneFolder) -> list[Trial]:
    """All trials in their order. Raises MegatuneError for a file that is damaged."""
    paths = sorted(path for path in folder.trials.glob("[0-9]*") if (path / _CLAIM).is_file())
    return [_trial(path) for path in paths]


def take(folder: TuneFolder, number: int, *, candidate: int, rung: int, steps: int) -> bool:
    """Enter trial `number` as begun. False when another worker has taken that number."""
    scratch = folder.trials / f".{number:05d}.{os.uname().nodename}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    claim = {"candidate": candidate, "rung": rung, "steps": steps}
    write_text_atomic(scratch / _CLAIM, json.dumps(claim) + "\n")
    try:
        scratch.rename(folder.trial(number).path)
    except OSError as error:
        shutil.rmtree(scratch)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def enter(folder: TuneFolder, number: int, ended: Ended) -> None:
    """Enter how a trial ended, in one stroke."""
    write_text_atomic(folder.trial(number).path / _RESULT, json.dumps(ended.as_object(), indent=1) + "\n")


def _trial(path: Path) -> Trial:
    claim = _read(path / _CLAIM)
    result = path / _RESULT
    return Trial(number=int(path.name), **claim, ended=_ended(_read(result)) if result.is_file() else None)


def _ended(entry: Mapping[str, Any]) -> Ended:
    measure = entry["measure"]
    return Ended(**{**entry, "measure": None if measure is None else Measure.from_object(measure)})


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MegatuneError(
            f"{path} is damaged ({error}). Delete the folder {path.parent}: the trial is made again."
        ) from error
    assert isinstance(found, dict), f"{path} was written by this program"
    return found
