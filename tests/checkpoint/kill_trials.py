"""Trials of a save that is killed: two real gloo ranks save without end, and lose one or both at a random moment.

`run_trials` works in one process that has imported torch: it forks the ranks of a trial, hears on a pipe
which saves have returned, kills, waits for what is left, and reads what stands on the disk. The next
trial is the next start in the same folder.
"""

import contextlib
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from killed_writers import LAYOUT, WRITERS, Writer, rank_world

from megatune.engine.world import single_world
from megatune.launch.checkpoints import MANIFEST

READY, SAVED, TENDED = b"R", b"S", b"T"
_RECORD_BYTES = 9
SURVIVOR_S = 20.0


@dataclass
class Outcome:
    """What became of a series of trials."""

    num_trials: int = 0
    num_saves: int = 0
    """Saves that had returned before their ranks were killed."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """What was lost or wrong after a kill; trials end with the first."""
    moments: Counter[str] = field(default_factory=Counter)
    """What the kill had left on the disk -> trials."""

    def __iadd__(self, other: "Outcome") -> "Outcome":
        self.num_trials += other.num_trials
        self.num_saves += other.num_saves
        self.seconds += other.seconds
        self.problems += other.problems
        self.moments += other.moments
        return self


@dataclass
class _Trial:
    """The two ranks of one start, and what they have said."""

    pids: list[int]
    pipe: int
    saved: int = 0
    num_saved: int = 0

    def listen(self, until_s: float, *, ready: int | None = None, ended: int | None = None) -> None:
        """Take in records until that time, until so many ranks are ready, or until a save has ended."""
        num_ready = 0
        while (left_s := until_s - time.monotonic()) > 0:
            if not select.select([self.pipe], [], [], left_s)[0]:
                return
            record = os.read(self.pipe, _RECORD_BYTES)
            if not record:  # both are gone
                return
            kind, step = record[:1], int.from_bytes(record[1:], "little")
            num_ready += kind == READY
            if kind == SAVED:
                self.num_saved += step > self.saved
                self.saved = max(self.saved, step)
            if num_ready == ready or (kind == TENDED and step == ended):
                return


def run_trials(folder: str, writer_name: str, num_trials: int, seed: int) -> Outcome:
    """Kill ranks of `writer_name` up to `num_trials` times in `folder`; stops at the first problem."""
    run, writer, chance = Path(folder), WRITERS[writer_name](), random.Random(seed)
    outcome, started = Outcome(), time.monotonic()
    span_s = _seconds_of_saves(run / f"measured-{seed}", writer)
    while outcome.num_trials < num_trials and not outcome.problems:
        outcome.num_trials += 1
        victims = chance.choice([(0,), (1,), (0, 1)])
        delay_s = chance.uniform(0, span_s)
        trial = _start(run / "run", writer)
        trial.listen(time.monotonic() + SURVIVOR_S, ready=2)
        trial.listen(time.monotonic() + delay_s)
        problem = _kill(trial, victims) or _problem(run / "run", writer, trial.saved)
        outcome.num_saves += trial.num_saved
        outcome.moments[_moment(run / "run")] += 1
        if problem:
            outcome.problems.append(
                f"trial {outcome.num_trials}: ranks {victims} killed {delay_s * 1000:.1f} ms after their start, "
                f"step {trial.saved} acknowledged: {problem}"
            )
    outcome.seconds = time.monotonic() - started
    return outcome


def _seconds_of_saves(run: Path, writer: Writer) -> float:
    """From a start to the end of its third save, with everything that belongs to it: what kills fall into."""
    trial = _start(run, writer)
    trial.listen(time.monotonic() + SURVIVOR_S, ready=2)
    started = time.monotonic()
    trial.listen(started + SURVIVOR_S, ended=3)
    seconds = time.monotonic() - started
    problem = _kill(trial, (0, 1))
    assert problem is None, problem
    return seconds


def _start(run: Path, writer: Writer) -> _Trial:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    store = run.parent / "store"
    store.unlink(missing_ok=True)
    ours, theirs = os.pipe()
    pids = []
    for rank in range(LAYOUT.num_ranks):
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            _be_rank(rank, store, run, writer, theirs)
        pids.append(pid)
    os.close(theirs)
    return _Trial(pids, ours)


def _be_rank(rank: int, store: Path, run: Path, writer: Writer, pipe: int) -> None:
    """Save without end; never returns. Only a rank whose peer was not killed says how it failed."""
    words = run.parent / f"failure-of-{rank}"
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=SURVIVOR_S),
        )
        world = rank_world(rank)

        def tell(kind: bytes, step: int = 0) -> None:
            os.write(pipe, kind + step.to_bytes(_RECORD_BYTES - 1, "little"))

        world.barrier()
        tell(READY)
        step = writer.start(run, world)
        while True:
            step += 1
            writer.save(run, world, step)
            tell(SAVED, step)
            writer.tend(run, world, step)
            tell(TENDED, step)
    except BaseException:
        words.write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(1)


def _kill(trial: _Trial, victims: tuple[int, ...]) -> str | None:
    """Kill the victims and wait for all. Returns what was wrong before: a rank that had ended by itself."""
    gone = [rank for rank, pid in enumerate(trial.pids) if os.waitpid(pid, os.WNOHANG)[0]]
    if not gone:
        for rank in victims:
            os.kill(trial.pids[rank], signal.SIGKILL)
    trial.listen(
        time.monotonic() + SURVIVOR_S
    )  # ends when the last rank has: gloo tells it that its peer is gone
    for rank, pid in enumerate(trial.pids):
        if rank not in gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os.close(trial.pipe)
    return f"ranks {gone} ended before the kill" if gone else None


def _problem(run: Path, writer: Writer, acknowledged: int) -> str | None:
    """What a next start would miss, None when nothing."""
    try:
        found = writer.last_step(run)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if acknowledged and (found is None or found < acknowledged):
        return f"the next start would go on from step {found}"
    unfinished = [*(run / "checkpoints").glob("*.tmp"), *run.glob(".*.tmp")]
    if len(unfinished) > 3:
        return f"leftovers of earlier starts pile up: {sorted(path.name for path in unfinished)}"
    return None


def _moment(run: Path) -> str:
    unfinished = list((run / "checkpoints").glob("*.tmp"))
    if any(path.name.endswith(".old.tmp") for path in unfinished):
        return "while pruning"
    if any((path / MANIFEST).exists() for path in unfinished):
        return "after the manifest"
    return "while writing" if unfinished else "between two saves, in hints or at the start"


def left_after_a_start(folder: str) -> list[str]:
    """What stands in the run's folder when the next start has cleared up: names below it, hidden ones too."""
    run, writer, world = Path(folder) / "run", Writer(), single_world()
    writer.tend(run, world, writer.start(run, world))
    return sorted(
        path.relative_to(run).as_posix() for path in [*run.iterdir(), *(run / "checkpoints").iterdir()]
    )
