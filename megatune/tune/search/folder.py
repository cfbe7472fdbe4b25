"""The folder of a search: what lies where."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from megatune.errors import ConfigError
from megatune.launch.run_folder import RunFolder


@dataclass(frozen=True)
class SearchFolder:
    """Paths below `path`, which is `search` in the run folder. Nothing is made until `create`."""

    path: Path

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
        return self.path / "search.png"

    @property
    def prepared(self) -> Path:
        """The tokenised data of all trials."""
        return self.path / "prepared"

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.path / "trials" / f"{number:05d}")

    def trial_log(self, number: int) -> Path:
        """What the command of a trial printed."""
        return self.trial(number).path / "train.log"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when that is impossible."""
        try:
            self.prepared.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                [
                    f"cannot make {self.prepared}: {error.strerror}. Choose a train.output_dir that you can write to."
                ],
                source="megatune search",
            ) from error

    def create_trial(self, number: int) -> RunFolder:
        """Make the folder of a trial; it finds the data that other trials have prepared."""
        run = self.trial(number)
        run.create()
        if not run.prepared.is_symlink():
            run.prepared.symlink_to(self.prepared.absolute())
        return run

    def drop_checkpoints(self, number: int) -> None:
        """Delete the checkpoints of a trial that will not be gone on with."""
        shutil.rmtree(self.trial(number).checkpoints, ignore_errors=True)
