"""Power cuts without cutting any power: what two saving ranks ask of the file system is recorded, and every state
that a disk may be in when the power goes is built from it.

A disk keeps what was synced, and may or may not keep more: names that were made, renamed and removed since.
Recorded are the tree of the run at each open, rename, removal and new folder (Python's audit events), and at
each fsync what it makes safe: the bytes of a file, the names in a folder. The states tried at each of these
moments are `synced`: nothing else was kept; `names`: all names were, bytes that were not synced are gone;
`mixed`: each folder the one way or the other.
"""

import contextlib
import fcntl
import json
import os
import random
import shutil
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from killed_writers import LAYOUT, WRITERS, rank_world

_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"})
_SAVES = 4
_MORE_MIXTURES = 5
MODES = ("synced", "names", "mixed")
Dropped = Callable[[str], bool]

DROPS: dict[str, Dropped] = {
    "nothing": lambda _: False,
    "every sync": lambda _: True,
    "syncs of files": lambda path: not Path(path).is_dir(),
    "syncs of tensors": lambda path: path.endswith(".safetensors"),
    "syncs of the second rank": lambda path: "rank-00001" in path,
    "syncs of the manifest": lambda path: path.endswith("manifest.json"),
    "syncs of folders": lambda path: Path(path).is_dir(),
    "syncs of the unfinished folder": lambda path: path.endswith(".tmp") and Path(path).is_dir(),
    "syncs of the folder of checkpoints": lambda path: path.endswith("/checkpoints"),
    "syncs of the run's folder": lambda path: path.endswith("/run"),
}
"""What a writer does not wait for -> which paths that are."""


class Recorder:
    """Writes down what this process does below `root`; several processes share a journal."""

    def __init__(self, root: Path, journal: Path, is_dropped: Dropped) -> None:
        self._root, self._journal, self._is_dropped = root, journal, is_dropped
        self._inside = threading.local()
        self._lock = (journal / "lock").open("w")
        self._real_fsync = os.fsync
        os.fsync = self._fsync
        sys.addaudithook(self._audit)

    def saved(self, step: int) -> None:
        """A save has returned on this rank."""
        with self._held():
            self._append({"kind": "saved", "step": step})

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self._inside.busy = True
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._inside.busy = False

    def _audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event not in _EVENTS or getattr(self._inside, "busy", False):
            return
        with self._held():
            self._append({"kind": "state", "tree": self._tree()})

    def _fsync(self, descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not path.startswith(str(self._root)) or self._is_dropped(path):
            return
        with self._held():
            status = os.fstat(descriptor)
            entry: dict[str, Any] = {"tree": self._tree(), "inode": status.st_ino}
            # Of what was there before: another rank may add to the folder meanwhile.
            if stat.S_ISDIR(status.st_mode):
                entry |= {"kind": "folder"}
            else:
                blob = f"{os.getpid()}-{len(list(self._journal.iterdir()))}"
                shutil.copyfile(f"/proc/self/fd/{descriptor}", self._journal / blob)
                entry |= {"kind": "file", "blob": blob}
            self._real_fsync(descriptor)
            self._append(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        with (self._journal / "journal").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _tree(self) -> dict[str, dict[str, int]]:
        """Inode of each folder -> its names -> their inodes."""
        found: dict[str, dict[str, int]] = {}
        pending = [self._root]
        while pending:
            folder = pending.pop()
            with contextlib.suppress(FileNotFoundError):  # removed by the other rank just now
                names = found.setdefault(str(folder.stat().st_ino), {})
                for entry in os.scandir(folder):
                    names[entry.name] = entry.inode()
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(folder / entry.name)
        return found


def record_saves(folder: str, writer_name: str, drop: str) -> None:
    """Have two forked ranks save `_SAVES` times into folder/run, recorded in folder/journal."""
    root, journal = Path(folder) / "run", Path(folder) / "journal"
    root.mkdir(parents=True)
    journal.mkdir()
    sys.stdout.flush()
    pids = []
    for rank in range(LAYOUT.num_ranks):
        pid = os.fork()
        if pid == 0:
            _be_rank(rank, Path(folder), root, journal, writer_name, drop)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    failures = [path.read_text() for path in Path(folder).glob("failure-*")]
    assert codes == [0, 0], failures


def _be_rank(rank: int, folder: Path, root: Path, journal: Path, writer_name: str, drop: str) -> None:
    code = 1
    try:
        store = f"file://{folder / 'store'}"
        timeout = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
        world, writer = rank_world(rank), WRITERS[writer_name]()
        recorder = Recorder(root, journal, DROPS[drop])
        step = writer.start(root, world)
        for _ in range(_SAVES):
            step += 1
            writer.save(root, world, step)
            recorder.saved(step)
            writer.tend(root, world, step)
        code = 0
    except BaseException:
        (folder / f"failure-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@dataclass
class Disk:
    """What is known of a disk while a journal is read."""

    journal: Path
    live: dict[str, dict[str, str]] = field(default_factory=dict)
    """Folder -> names -> files and folders; each is its inode and how often that was given out before."""
    synced: dict[str, dict[str, str]] = field(default_factory=dict)
    blobs: dict[str, str] = field(default_factory=dict)
    """File -> copy of the bytes of it that are safe."""
    root: str = ""
    _uses: dict[int, int] = field(default_factory=dict)
    _seen: frozenset[int] = frozenset()

    def take(self, entry: dict[str, Any]) -> None:
        """Go on past one entry of the journal."""
        tree: dict[str, dict[str, int]] = entry["tree"]
        inodes = frozenset(
            {int(key) for key in tree} | {i for names in tree.values() for i in names.values()}
        )
        for inode in inodes - self._seen:
            self._uses[inode] = self._uses.get(inode, 0) + 1
        self._seen = inodes
        self.live = {
            self._name(int(key)): {name: self._name(inode) for name, inode in names.items()}
            for key, names in tree.items()
        }
        self.root = self.root or self._name(int(next(iter(tree))))
        if entry["kind"] == "folder":
            self.synced[self._name(entry["inode"])] = self.live.get(self._name(entry["inode"]), {})
        if entry["kind"] == "file":
            self.blobs[self._name(entry["inode"])] = entry["blob"]

    def after_a_cut(self, mode: str, chance: random.Random) -> dict[str, str | None]:
        """Path -> copy of its bytes; None for a folder, an empty text for a file without any."""
        found: dict[str, str | None] = {}
        pending = [("", self.root)]
        while pending:
            path, folder = pending.pop()
            keeps_names = {"synced": False, "names": True, "mixed": chance.random() < 0.5}[mode]
            names = self.live.get(folder, {}) if keeps_names else self.synced.get(folder, {})
            for name, item in names.items():
                below = f"{path}/{name}".lstrip("/")
                is_folder = item in self.live or item in self.synced
                found[below] = None if is_folder else self.blobs.get(item, "")
                if is_folder:
                    pending.append((below, item))
        return found

    def _name(self, inode: int) -> str:
        return f"{inode}.{self._uses.get(inode, 0)}"


def first_loss(folder: str, writer_name: str, seed: int = 0) -> tuple[str | None, int]:
    """What would be missing after the first power cut that loses a save that had returned; and states tried."""
    journal, rebuilt, chance = Path(folder) / "journal", Path(folder) / "rebuilt", random.Random(seed)
    writer, disk, acknowledged = WRITERS[writer_name](), Disk(journal), 0
    tried: set[Any] = set()
    for number, line in enumerate((journal / "journal").read_text().splitlines()):
        entry = json.loads(line)
        if entry["kind"] == "saved":
            acknowledged = max(acknowledged, entry["step"])
        else:
            disk.take(entry)
        for mode in (*MODES, *["mixed"] * _MORE_MIXTURES):
            state = disk.after_a_cut(mode, chance)
            key = (acknowledged, tuple(sorted(state.items(), key=lambda item: item[0])))
            if key in tried:
                continue
            tried.add(key)
            _build(rebuilt, state, journal)
            problem = _problem(writer, rebuilt, acknowledged)
            if problem:
                return f"{mode}, after entry {number} of the journal: {problem}", len(tried)
    return None, len(tried)


def _build(rebuilt: Path, state: dict[str, str | None], journal: Path) -> None:
    shutil.rmtree(rebuilt, ignore_errors=True)
    rebuilt.mkdir()
    for path, blob in sorted(state.items()):
        if blob is None:
            (rebuilt / path).mkdir()
        elif blob:
            os.link(journal / blob, rebuilt / path)
        else:
            (rebuilt / path).touch()


def _problem(writer: Any, run: Path, acknowledged: int) -> str | None:
    try:
        found = writer.last_step(run)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if (found or 0) < acknowledged:
        return f"step {acknowledged} was saved, the next start would go on from {found}"
    return None
