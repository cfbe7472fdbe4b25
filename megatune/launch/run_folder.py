"""The folder of one run (`train.output_dir`): what lies where."""

from dataclasses import dataclass
from pathlib import Path

from megatune.errors import ConfigError
from megatune.files import write_text_atomic


@dataclass(frozen=True)
class RunFolder:
    """Paths below `path`. Nothing is made until `create`."""

    path: Path

    @property
    def run_file(self) -> Path:
        """The resolved run file, with where each value came from."""
        return self.path / "run.yaml"

    @property
    def lock(self) -> Path:
        """Held by the training that writes here, as host and process: see `run_lock.py`."""
        return self.path / "in-use"

    @property
    def begun(self) -> Path:
        """Who has carried out `checkpoint.resume=none` or a folder last: see `start_names.py`."""
        return self.path / "begun"

    @property
    def plan(self) -> Path:
        """The layout that was chosen and what it was expected to need."""
        return self.path / "plan.json"

    @property
    def ds_config(self) -> Path:
        """The configuration that DeepSpeed is given."""
        return self.path / "ds_config.json"

    @property
    def environment(self) -> Path:
        """Versions and machine: see `environment_report`."""
        return self.path / "env.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: what every table and picture is drawn from."""
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """One file per rank."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    @property
    def prepared(self) -> Path:
        """The tokenised data."""
        return self.path / "prepared"

    @property
    def model(self) -> Path:
        """The model as the run begins with it, where that is not the one of the run file: see `start_model.py`."""
        return self.path / "model"

    @property
    def data_hashes(self) -> Path:
        """Hashes of the data files, so that unchanged ones need not be read again."""
        return self.path / "data-hashes.json"

    @property
    def receipt(self) -> Path:
        """What was prepared, and from which files: see `data/receipt.py`."""
        return self.path / "prepared.json"

    @property
    def data_picture(self) -> Path:
        """What the rows are like, drawn by `megatune prepare`."""
        return self.path / "data.png"

    @property
    def export(self) -> Path:
        """The Hugging Face folder."""
        return self.path / "export"

    @property
    def exported(self) -> Path:
        """The checkpoint that `export` was made of; not there while a later start trains on."""
        return self.path / "exported"

    def answers(self, step: int) -> Path:
        """What the model of `step` answered, one file a split beside gold."""
        return self.path / "answers" / f"step-{step:08d}"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def heartbeats(self) -> Path:
        """Where each rank is, one file a rank: see `heartbeat.py`."""
        return self.path / "heartbeats"

    @property
    def profile(self) -> Path:
        """Trace and summary of `train.profile`."""
        return self.path / "profile"

    @property
    def crash(self) -> Path:
        """One folder for each hang, with what was known about it."""
        return self.path / "crash"

    @property
    def job_script(self) -> Path:
        """The script that sbatch was given."""
        return self.path / "job.sbatch"

    @property
    def jobs(self) -> Path:
        """One JSON object per submitted job: see `slurm/history.py`."""
        return self.path / "jobs.jsonl"

    @property
    def doctor(self) -> Path:
        """The report of the last `megatune doctor` with this run's file."""
        return self.path / "doctor.json"

    @property
    def is_made(self) -> bool:
        """Whether megatune has prepared or trained here, by files that nothing else calls so."""
        return (
            self.data_hashes.is_file()
            or any(self.prepared.glob("*/manifest.json"))
            or (self.logs.is_dir() and self.checkpoints.is_dir())
        )

    def create(self) -> None:
        """Make the folder and those for logs and checkpoints; what is there stays.

        Raises ConfigError when that is impossible.
        """
        for folder in (self.path, self.logs, self.checkpoints):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    [
                        f"train.output_dir = {self.path}: cannot make {folder}: {error.strerror}. "
                        "Choose a folder that you can write to and that has space."
                    ]
                ) from error

    def share_prepared(self, prepared: Path) -> None:
        """Let this run, whose folder is made, find the data of another one, and leave there what it prepares."""
        if not self.prepared.is_symlink():
            self.prepared.symlink_to(prepared.absolute())

    def write_text_atomic(self, name: str, text: str) -> Path:
        """Put `text` into the file `name` of this folder in one stroke. Raises OSError naming the file."""
        target = self.path / name
        write_text_atomic(target, text)
        return target
