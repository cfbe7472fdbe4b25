"""The folder of a search: what lies where."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatune.launch.run_folder import RunFolder
from megatune.tune.folder import TrialsFolder


@dataclass(frozen=True)
class SearchFolder(TrialsFolder):
    """Paths below `path`, which is `search` in the run folder."""

    command: ClassVar[str] = "search"

    @property
    def prepared(self) -> Path:
        """The tokenised data of all trials."""
        return self.path / "prepared"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when that is impossible."""
        self.make(self.prepared)

    def create_trial(self, number: int) -> RunFolder:
        """Make the folder of a trial; it finds the data that other trials have prepared."""
        run = self.trial(number)
        run.create()
        run.share_prepared(self.prepared)
        return run

    def drop_checkpoints(self, number: int) -> None:
        """Delete the checkpoints of a trial that will not be gone on with."""
        shutil.rmtree(self.trial(number).checkpoints, ignore_errors=True)
