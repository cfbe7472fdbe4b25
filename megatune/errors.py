"""What megatune raises, and the exit code each error ends the command with.

The user's own mistakes (`UserError`) are printed as a message without a traceback and
exit 2, a rank without memory 12; everything else exits 1.
"""

from collections.abc import Sequence

OUT_OF_MEMORY = 12  # ENOMEM


class MegatuneError(Exception):
    """An error with a message meant for the user; the command line prints it as it is."""

    exit_code = 1


class UserError(MegatuneError):
    """The user's input is at fault: exit 2, no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """Problems of a run file, all of them at once.

    `problems` are whole sentences that name what was asked, found, allowed and the fix.
    """

    def __init__(self, problems: Sequence[str], *, source: str | None = None) -> None:
        """source: what has them; None for the run file, where its path is not known."""
        self.problems = list(problems)
        self.source = source
        super().__init__(self._message())

    def _message(self) -> str:
        source = self.source or "the run file"
        if len(self.problems) == 1:
            return f"{source}: {self.problems[0]}"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"{source} has {len(self.problems)} problems:{lines}"


class DataError(UserError):
    """The data cannot be used: missing file, missing column, broken row, empty set."""


class NotPreparedError(DataError):
    """What `megatune prepare` makes is not there, and is not to be made where it was looked for."""


class ModelError(UserError):
    """The model cannot be used as asked: unknown folder, refused family or layout."""


class PromptError(UserError):
    """A prompt that this model cannot answer: it has no token, or more than there is room for."""


class VersionError(UserError):
    """An installed package is none that megatune can work with."""


class PlanError(UserError):
    """No layout satisfies what was asked."""


class LaunchError(MegatuneError):
    """The ranks could not be started, or one of them died."""


class MemoryExhaustedError(MegatuneError):
    """A rank had no memory left; the message says what it held and what would fit."""

    exit_code = OUT_OF_MEMORY


class SubmitError(MegatuneError):
    """Slurm refused a job or a question, could not be asked, or gave an answer that is none."""


class ResumeError(UserError):
    """A checkpoint does not belong to this run file or layout, or a folder asked for is none."""


class ExportError(UserError):
    """The folder to export to cannot be used."""


class ConvertError(UserError):
    """A checkpoint of another program cannot be converted, or not into what was asked."""


class CheckpointError(MegatuneError):
    """A checkpoint could not be written, or none could be read."""


class SaveError(CheckpointError):
    """The disk did not take a checkpoint; the older ones are as they were, and training could go on."""
