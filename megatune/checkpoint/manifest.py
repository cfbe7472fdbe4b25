"""`manifest.json`: which files a checkpoint is made of, and how each byte of them is told from damage.

It is written last, so a folder without one was never finished. It carries a hash of itself and has
exactly one spelling: any changed byte in it is found as well.
"""

import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from megatune.checkpoint.layout import MODEL_FOLDER, TRAINING, WEIGHTS, Layout, parse_json, rank_file
from megatune.errors import CheckpointError
from megatune.launch.checkpoints import MANIFEST, step_of

SCHEMA = 3
_MAX_BYTES = 2**28
_MAX_RANKS = 2**20


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file as it was written."""

    size: int
    """Bytes."""
    xxh3_128: str
    """Hash of these bytes, in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    step: int
    layout: Layout
    files: Mapping[str, FileEntry]
    """Path below the folder -> its entry; exactly the files of `layout`."""
    versions: Mapping[str, str]
    """Package -> version that wrote the checkpoint."""
    config_hash: str
    """Of the run's settings, which `training.json` holds in full."""
    data: Mapping[str, Any]
    """Where the run stands in its data: fingerprint, epoch, cursor, sequences_per_step."""
    kept_for_ever: bool = False
    """No limit on the number of checkpoints removes it."""

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())


def render_manifest(manifest: Manifest) -> bytes:
    """The one spelling of a manifest."""
    return _render({"schema": SCHEMA, **asdict(manifest)})


def _render(body: Mapping[str, Any]) -> bytes:
    own_hash = xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "xxh3_128": own_hash}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises CheckpointError that says what is wrong with it: missing, changed since it was written, of
    another schema, or naming files that do not belong into a checkpoint.
    """
    path = folder / MANIFEST
    body = parse_json(_read_own_file(path), path)
    if body.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: its schema is {body.get('schema')!r}, this version reads {SCHEMA}.")
    own_hash = body.pop("xxh3_128", None)
    if own_hash is None or _render(body) != path.read_bytes():
        raise CheckpointError(f"{path} has changed since it was saved (its hash differs).")
    try:
        manifest = _from_body(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is no manifest: {type(error).__name__}: {error}.") from error
    if step_of(folder) not in (None, manifest.step):
        raise CheckpointError(
            f"{path} is the manifest of step {manifest.step}: the folder is a copy of that one."
        )
    _check_names(path, manifest)
    return manifest


def _read_own_file(path: Path) -> bytes:
    reason = _why_no_file(path)
    if reason == "is missing":
        raise CheckpointError(f"no {MANIFEST} in {path.parent}: it was never finished.")
    if reason:
        raise CheckpointError(f"{path} {reason}.")
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES} bytes: it is no manifest.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _from_body(body: Mapping[str, Any]) -> Manifest:
    layout = Layout(**body["layout"])
    counts = (layout.data_parallel, layout.tensor_parallel, layout.accumulation, body["step"] + 1)
    if not all(type(count) is int and count > 0 for count in counts) or layout.num_ranks > _MAX_RANKS:
        raise ValueError(f"step {body['step']} at {layout}")
    files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    if not all(type(entry.size) is int and type(entry.xxh3_128) is str for entry in files.values()):
        raise ValueError("an entry of its files")
    return Manifest(
        step=body["step"],
        layout=layout,
        files=files,
        versions=dict(body["versions"]),
        config_hash=str(body["config_hash"]),
        data=dict(body["data"]),
        kept_for_ever=bool(body["kept_for_ever"]),
    )


def _check_names(path: Path, manifest: Manifest) -> None:
    """A name is one of those a checkpoint of this layout has, or a plain file of the model's folder."""
    expected = {TRAINING, WEIGHTS} | {
        rank_file(rank, suffix)
        for rank in range(manifest.layout.num_ranks)
        for suffix in ("safetensors", "json")
    }
    missing = sorted(expected - manifest.files.keys())
    if missing:
        raise CheckpointError(f"{path} does not list {', '.join(missing[:3])}.")
    for name in manifest.files.keys() - expected:
        if not is_model_file(name):
            raise CheckpointError(f"{path} lists {name!r}, which is no file of a checkpoint: refused.")


def is_model_file(name: str) -> bool:
    """Whether `name` is a file right inside `model/`, and nothing that leads out of it."""
    parts = PurePosixPath(name).parts
    return (
        len(parts) == 2
        and parts[0] == MODEL_FOLDER
        and parts[1] not in (".", "..")
        and name == f"{MODEL_FOLDER}/{parts[1]}"
        and "\0" not in name
    )


def why_incomplete(folder: Path) -> str | None:
    """The reason why `folder` is not a whole checkpoint, None when it is. Looks at names and sizes only."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return str(error).rstrip(".")
    if (folder / MODEL_FOLDER).is_symlink():
        return f"{MODEL_FOLDER} is a symbolic link, which no checkpoint holds"
    for name, entry in manifest.files.items():
        reason = _why_no_file(folder / name)
        if reason:
            return f"{name} {reason}"
        size = (folder / name).stat().st_size
        if size != entry.size:
            return f"{name} has {size} bytes instead of {entry.size}"
    return None


def _why_no_file(path: Path) -> str | None:
    """Why `path` is no regular file; a link is none, wherever it leads."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if stat.S_ISLNK(mode):
        return "is a symbolic link, which no checkpoint holds"
    return None if stat.S_ISREG(mode) else "is no regular file"
