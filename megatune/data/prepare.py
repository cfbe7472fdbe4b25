"""Prepare data once: rows -> a folder named by a fingerprint, complete or not there at all."""

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.data.build import Origin, build_set
from megatune.data.build import Settings as SetSettings
from megatune.data.crew import choose_num_workers, work_together
from megatune.data.fingerprint import MadeFrom, changes, made_from
from megatune.data.hash_memo import HashMemo
from megatune.data.part import PartSettings, Share, check_vocabulary
from megatune.data.pool import Pool, Side, divide
from megatune.data.prepared import MANIFEST, SCHEMA, PreparedSet, write_manifest
from megatune.data.progress import SILENT, Progress
from megatune.data.quality import Report
from megatune.data.read import Source, check_sources, find_files
from megatune.data.segmenting import Segmenting
from megatune.data.shared import Job, OnShare, part_folder, tallies_of, write_share
from megatune.data.space import writing_prepared
from megatune.data.tally import Tally
from megatune.data.team import ALONE, Team
from megatune.data.tokenize import Limit, LongRows, padding_id
from megatune.data.tokenize import Side as CutSide
from megatune.errors import DataError, NotPreparedError
from megatune.files import sync_folder
from megatune.launch.devices import count_cpus
from megatune.tasks import DEFAULTS, FOR_SCORES, TASKS, TaskOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SCRATCH_SUFFIX = ".tmp"
_ABANDONED_AFTER_S = 24 * 3600  # what nobody wrote to for a day was left by a killed process


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides, beside the rows and the tokenizer, what is in a prepared set; as the run file says it."""

    task: str
    max_seq_length: int
    packing: bool = True
    completion_only: bool = True
    long_rows: LongRows = "truncate"
    truncation_side: CutSide = "right"
    weights: tuple[float, ...] | None = None
    no_row_twice: bool = False
    val_size: float | None = None
    seed: int = 0
    options: TaskOptions = DEFAULTS
    head: str = "lm"

    def named(self, *, is_validation: bool) -> dict[str, object]:
        """Those that make a difference, by their names in the run file."""
        is_weighted = self.weights is not None and not is_validation
        is_drawn = self.packing or is_weighted or self.val_size is not None
        return {
            "data.task": self.task,
            "data.max_seq_length": self.max_seq_length,
            "data.packing": self.packing,
            "data.completion_only_loss": self.completion_only,
            "data.long_rows": self.long_rows,
            "data.truncation_side": self.truncation_side if self.long_rows != "drop" else None,
            "weights": self.weights if is_weighted else None,
            "data.stopping_strategy": self.no_row_twice if is_weighted else None,
            "data.val_size": self.val_size,
            "train.seed": self.seed if is_drawn else None,
            "model.head": self.head,
            **{
                f"data.{name}": value
                for name, value in asdict(self.options).items()
                if name not in FOR_SCORES
            },
            "schema": SCHEMA,
        }


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the sets of one source, or of a mixture of several, are made."""

    sources: Sequence[Source]
    split_name: str
    """`train`, `validation` or `test`: for messages, and the default split."""
    settings: Settings
    tokenizer: "PreTrainedTokenizerBase"
    tokenizer_name: str
    folder: Path
    """Where the sets are, each in a folder named by its fingerprint."""
    hashes: Path | None = None
    """Where to remember the hashes of the files: see `hash_memo`."""
    vocab_size: int | None = None
    """Rows of the model's embedding; None skips that check."""
    num_workers: int | None = None
    """Processes that tokenise; None lets the data and the cores decide."""
    progress: Progress = SILENT
    team: Team = ALONE
    """Processes that make the set together, each with the same arguments; all is collective then."""
    may_make: bool = True
    """False raises NotPreparedError for a set that is not there."""
    may_be_without_loss: bool = False
    """Take a set of which every row is too long for a loss, for its answers can be scored."""

    def prepare(self) -> PreparedSet:
        """The set of all rows; made now, or at once when it is there already.

        Several processes may prepare the same folder: each works in a scratch folder of its own, the
        first to finish renames it into place and the others take that. Raises DataError for whatever is
        wrong with the data, and then leaves nothing behind.
        """
        assert self.settings.val_size is None, "two sets are asked for"
        (made,) = self._sets((self.split_name,))
        return made

    def prepare_both(self) -> tuple[PreparedSet, PreparedSet]:
        """The sets of the training and of the validation rows that `settings.val_size` divides the rows into."""
        assert self.settings.val_size is not None, "one set is asked for"
        train, validation = self._sets((self.split_name, "validation"))
        return train, validation

    def _sets(self, names: tuple[str, ...]) -> list[PreparedSet]:
        team = self.team
        origins = team.first(lambda: self._origins(names))
        finals = [self.folder / origin.fingerprint for origin in origins]
        if not team.first(lambda: all(final.exists() for final in finals)):
            team.first(lambda: self._tell_changes(names[0], origins[0]))
            with self._scratch(finals[0]) as scratch:
                job = team.first(lambda: self._job(scratch))
                tallies = self._tokenise(job)
                team.first(lambda: self._publish(job, tallies, names, origins))
        return team.each(lambda: [self._open(final) for final in finals])

    def _origins(self, names: tuple[str, ...]) -> list[MadeFrom]:
        """Raises DataError when the data cannot be read."""
        for source in self.sources:
            _check_columns(source, self.settings.task, self.split_name)
        check_sources(self.sources, split_name=self.split_name)
        found = []
        memo = HashMemo(self.hashes)
        for name in names:
            settings = self.settings.named(is_validation=name == "validation")
            if len(names) > 1:
                settings["part"] = name
            found.append(made_from(self.sources, self.tokenizer, settings, memo, split_name=self.split_name))
        with writing_prepared(self.folder):
            memo.save()
        return found

    def _tell_changes(self, name: str, origin: MadeFrom) -> None:
        """Why the set is made, where there was another one. Raises NotPreparedError when it may not be made."""
        before = _newest(self.folder, name)
        why = None if before is None else "; ".join(changes(before, origin)) or "it was removed"
        if not self.may_make:
            raise NotPreparedError(
                f"data.{name} is not prepared"
                if why is None
                else f"data.{name} has to be prepared anew, because {why}"
            )
        if why is not None:
            self.progress.note(f"prepared anew, because {why}")

    def _job(self, scratch: Path) -> Job:
        """What the processes work on. Data sets of the hub are fetched into `scratch`."""
        settings = self.settings
        files = tuple(
            find_files(source, split_name=self.split_name, scratch=scratch / f"source-{number}")
            for number, source in enumerate(self.sources)
        )
        segmenting = tuple(
            Segmenting(
                task=settings.task,
                completion_only=settings.completion_only,
                columns=source.columns,
                split_name=self.split_name,
                options=settings.options,
            )
            for source in files
        )
        limit = Limit(
            max_length=settings.max_seq_length, long_rows=settings.long_rows, side=settings.truncation_side
        )
        part = PartSettings(
            segmenting=segmenting, limit=limit, vocab_size=self.vocab_size, head=settings.head
        )
        return Job(sources=files, tokenizer=self.tokenizer, settings=part, scratch=scratch)

    def _tokenise(self, job: Job) -> list[Tally]:
        """Write the parts of all processes."""
        num_workers = self.team.size
        if num_workers == 1:
            num_workers = choose_num_workers(self.num_workers, count_cpus(), job.num_bytes, self.tokenizer)
        self.progress.begin(job.num_bytes, num_workers)
        if self.team.size == 1 and num_workers > 1:
            tallies = work_together(job, num_workers, self.progress.update)
        else:
            tallies = self._write_shares(job)
        self.progress.end()
        return tallies

    def _write_shares(self, job: Job) -> list[Tally]:
        share = Share(index=self.team.rank, count=self.team.size)
        on_block = OnShare(self.progress.update, share)
        guard = partial(writing_prepared, self.folder)
        found = self.team.gather(lambda: write_share(job, share, on_block, guard))
        return tallies_of(found)

    def _publish(
        self, job: Job, tallies: Sequence[Tally], names: tuple[str, ...], origins: Sequence[MadeFrom]
    ) -> None:
        """Build the sets from the parts, and give them their names."""
        tally = Tally()
        for one in tallies:
            tally.add(one)
        pool = Pool([part_folder(job.scratch, index) for index in range(len(tallies))])
        with writing_prepared(self.folder):
            for name, side, origin in zip(names, self._sides(pool, tally), origins, strict=True):
                made = job.scratch / name
                made.mkdir()
                own = tally if name == self.split_name else tally.without_dropped()
                self._write_set(pool, side, own, made, origin, job.labels)
            for name, origin in zip(names, origins, strict=True):
                _rename(job.scratch / name, self.folder / origin.fingerprint)

    def _sides(self, pool: Pool, tally: Tally) -> tuple[Side, ...]:
        size = self.settings.val_size
        if size is None:
            return (Side(),)
        # Nothing that could be divided is told by `Report.refuse_nothing`, in the words of a set that is not divided.
        return divide(pool, size, self.settings.seed) if tally.num_kept else (Side(), Side())

    def _write_set(
        self, pool: Pool, side: Side, tally: Tally, made: Path, origin: MadeFrom, labels: list[str]
    ) -> None:
        """Write one set, complete with its manifest, into `made`."""
        settings, is_first = self.settings, made.name == self.split_name
        described, report = build_set(
            pool,
            side,
            tally,
            made,
            SetSettings(
                max_seq_length=settings.max_seq_length,
                packing=settings.packing,
                seed=settings.seed if settings.packing or settings.weights else 0,
                weights=settings.weights if is_first else None,
                no_row_twice=settings.no_row_twice,
            ),
            Origin(split_name=self.split_name, labels_of_files=labels),
            pad_id=padding_id(self.tokenizer),
        )
        about = {"split": made.name, "tokenizer": self.tokenizer_name, "made_from": origin.as_fields()}
        self._refuse_nothing(report)
        write_manifest(
            made, counts={"fingerprint": origin.fingerprint, **described}, report=report, about=about
        )

    def _open(self, final: Path) -> PreparedSet:
        """Raises DataError when the model has no embedding for one of its tokens."""
        prepared = PreparedSet.open(final)
        self._refuse_nothing(prepared.report)
        check_vocabulary(prepared.max_token_id, self.vocab_size, f"data.{self.split_name}")
        return prepared

    def _refuse_nothing(self, report: Report) -> None:
        longest, may_be = self.settings.max_seq_length, self.may_be_without_loss
        report.refuse_nothing(self.split_name, longest, may_be_without_loss=may_be)

    @contextmanager
    def _scratch(self, final: Path) -> Iterator[Path]:
        """A folder beside `final` to work in, gone afterwards whatever happens but a kill. Collective."""

        def make() -> Path:
            with writing_prepared(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(self.folder)
                made = tempfile.mkdtemp(prefix=f"{final.name}.", suffix=_SCRATCH_SUFFIX, dir=self.folder)
                return Path(made)

        scratch = self.team.first(make)
        try:
            with writing_prepared(self.folder):
                yield scratch
        finally:
            if self.team.rank == 0:
                _remove(scratch)


def _check_columns(source: Source, task: str, split_name: str) -> None:
    """Raises DataError for a mapped name that the task does not read."""
    if task not in TASKS:
        raise DataError(f"there is no task {task!r}; tasks are {', '.join(TASKS)}")
    readable = TASKS[task].columns
    unknown = sorted(set(source.columns) - readable)
    if unknown:
        raise DataError(
            f"data.{split_name}.columns maps {', '.join(unknown)}, which task {task} does not read; it reads "
            f"{', '.join(sorted(readable))} (written as our name: your column)"
        )


def _newest(folder: Path, split: str) -> MadeFrom | None:
    """What the set of `split` was made from that was prepared last; None where there is none."""
    manifests = sorted(folder.glob(f"*/{MANIFEST}"), key=_written, reverse=True)
    for manifest in manifests:
        try:
            about = json.loads(manifest.read_text())["about"]
            if about["split"] == split:
                return MadeFrom.from_fields(about["made_from"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, of another version, or just removed: only a remark depends on it
    return None


def _remove_abandoned(folder: Path) -> None:
    for scratch in folder.glob(f"*{_SCRATCH_SUFFIX}"):
        if time.time() - max(map(_written, [scratch, *scratch.rglob("*")])) > _ABANDONED_AFTER_S:
            _remove(scratch)


def _written(path: Path) -> float:
    """When `path` was last written; now when it has just gone, for somebody is at work on it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remove(scratch: Path) -> None:
    # Errors are left out: a network file system may still hold a file open, and a scratch folder
    # that stays takes part in nothing and is removed as abandoned the next day.
    shutil.rmtree(scratch, ignore_errors=True)


def _rename(made: Path, final: Path) -> None:
    """Rename `made` into place, unless another process was faster: equal names hold equal data."""
    sync_folder(made)
    try:
        made.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    sync_folder(final.parent)
