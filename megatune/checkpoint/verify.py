"""Read the bytes of a checkpoint again and compare them with the hashes taken when they were written."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatune.checkpoint.manifest import Manifest, read_manifest, why_incomplete
from megatune.errors import CheckpointError
from megatune.files import hash_file

THREADS = 8
"""Files read at once. Hashing and reading both run outside of Python's lock."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of re-reading one checkpoint."""

    folder: Path
    problems: tuple[str, ...]
    """One sentence for each broken file; empty when every byte is as it was written."""
    num_bytes: int | None
    """Bytes that were read; None when the manifest cannot be trusted."""
    seconds: float


def verify_checkpoint(folder: Path, *, threads: int = THREADS) -> Verification:
    """Re-hash all files of a checkpoint."""
    started = time.monotonic()
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return Verification(
            folder=folder, problems=(str(error),), num_bytes=None, seconds=time.monotonic() - started
        )
    problems = damage(folder, manifest, manifest.files, threads=threads)
    if not problems:
        reason = why_incomplete(folder)  # what no hash tells: links
        problems = [f"{folder}: {reason}"] if reason else []
    return Verification(
        folder=folder,
        problems=tuple(problems),
        num_bytes=manifest.num_bytes,
        seconds=time.monotonic() - started,
    )


def damage(folder: Path, manifest: Manifest, names: Iterable[str], *, threads: int = THREADS) -> list[str]:
    """One sentence for each of the files `names` that is not byte for byte what was saved."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        found = pool.map(lambda name: _why_damaged(folder, name, manifest), sorted(names))
        return [problem for problem in found if problem]


def _why_damaged(folder: Path, name: str, manifest: Manifest) -> str | None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != manifest.files[name].size:
            return f"{path} has {size} bytes instead of {manifest.files[name].size}."
        digest = hash_file(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    if digest != manifest.files[name].xxh3_128:
        return f"{path} has changed since it was saved (its hash differs)."
    return None
