"""The folder that a tune or a search keeps in its run's: what both have in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatune.errors import ConfigError
from megatune.launch.run_folder import RunFolder


@dataclass(frozen=True)
class TrialsFolder:
    """Paths below `path`. Nothing is made until `create`."""

    path: Path
    command: ClassVar[str]
    """Which command's it is: `tune` or `search`. The folder and its picture are called so too."""

    @property
    def run_file(self) -> Path:
        """The run file that the trials start from, every key resolved."""
        return self.path / "run.yaml"

    @property
    def best_file(self) -> Path:
        """The run file of the best trial, ready to be trained."""
        return self.path / "best.yaml"

    @property
    def picture(self) -> Path:
        return self.path / f"{self.command}.png"

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.trials / f"{number:05d}")

    def trial_log(self, number: int) -> Path:
        """What the command of a trial printed."""
        return self.trial(number).path / "train.log"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when that is impossible."""
        self.make(self.trials)

    def make(self, folder: Path) -> None:
        """Make `folder`, one below `path`. Raises ConfigError when that is impossible."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                [f"cannot make {folder}: {error.strerror}. Choose a train.output_dir that you can write to."],
                source=f"megatune {self.command}",
            ) from error
