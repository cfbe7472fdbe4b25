"""No changed byte, no foreign name and no hostile file of a checkpoint gets as far as a tensor."""

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import xxhash
from written_checkpoints import SMALL, whole, write_checkpoint

from megatune.checkpoint import saved_state
from megatune.checkpoint.layout import Layout
from megatune.checkpoint.manifest import why_incomplete
from megatune.checkpoint.read import Found, find_checkpoint, open_state
from megatune.checkpoint.rng import restore_rng
from megatune.checkpoint.verify import verify_checkpoint
from megatune.engine.world import single_world
from megatune.errors import CheckpointError, MegatuneError
from megatune.launch.checkpoints import MANIFEST

FOUR_RANKS = Layout(data_parallel=2, tensor_parallel=2)
WEIGHTS = {name: entry.to_json() for name, entry in SMALL.items()}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two checkpoints of four ranks; tests damage the newer one, step 20."""
    for step in (10, 20):
        write_checkpoint(tmp_path / "checkpoints", step, layout=FOUR_RANKS)
    return tmp_path / "checkpoints"


@pytest.fixture
def newest(checkpoints: Path) -> Path:
    return checkpoints / "step-00000020"


@pytest.fixture
def no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a file for its tensors fails the test."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was opened for its tensors")

    monkeypatch.setattr(saved_state, "SliceFile", refuse)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def found_by_auto(checkpoints: Path) -> tuple[Found, list[str]]:
    found, passed_over = find_checkpoint(checkpoints, "auto", single_world())
    assert found is not None
    return found, passed_over


def assert_passed_over(checkpoints: Path, what: object) -> None:
    found, passed_over = found_by_auto(checkpoints)
    assert found.folder.name == "step-00000010", what
    assert len(passed_over) == 1, what
    assert "step-00000020" in passed_over[0], what


def test_an_undamaged_checkpoint_is_taken_and_its_tensors_are_those_saved(checkpoints: Path) -> None:
    found, passed_over = found_by_auto(checkpoints)

    assert (found.folder.name, passed_over) == ("step-00000020", [])
    state = open_state(found, WEIGHTS, single_world())
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        for name in ("fused", "row"):
            piece = torch.empty(state.num_elements(name))
            state.read_into(kind, name, piece)
            assert torch.equal(piece, whole(kind, name, SMALL))


def flips(newest: Path, count: int) -> Iterator[tuple[Path, int, int]]:
    """Random places and bits, and the first and the last byte of every file."""
    generator = random.Random(7)
    files = files_of(newest)
    for path in files:
        yield path, 0, 0
        yield path, path.stat().st_size - 1, 3
    for _ in range(count):
        path = generator.choice(files)
        yield path, generator.randrange(path.stat().st_size), generator.randrange(8)


@pytest.mark.usefixtures("no_tensors")
def test_each_of_1000_flipped_bits_is_found(checkpoints: Path, newest: Path) -> None:
    tried = 0
    for path, place, bit in flips(newest, 1000):
        content = path.read_bytes()
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
        assert_passed_over(checkpoints, (path.name, place, bit))
        path.write_bytes(content)
        tried += 1
    assert tried >= 1000
    assert verify_checkpoint(newest).problems == ()


@pytest.mark.usefixtures("no_tensors")
def test_each_cut_off_file_is_found(checkpoints: Path, newest: Path) -> None:
    generator = random.Random(8)
    for path in files_of(newest):
        content = path.read_bytes()
        for length in [0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(5))]:
            path.write_bytes(content[:length])
            assert_passed_over(checkpoints, (path.name, length))
        path.write_bytes(content + b"x")
        assert_passed_over(checkpoints, (path.name, "longer"))
        path.write_bytes(content)


def swap(newest: Path) -> None:
    first, second = (newest / f"rank-0000{rank}.safetensors" for rank in (1, 3))
    assert first.stat().st_size == second.stat().st_size
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def put_a_stale_shard(newest: Path) -> None:
    name = "rank-00000.safetensors"
    stale = newest.with_name("step-00000010") / name
    assert stale.stat().st_size == (newest / name).stat().st_size
    assert stale.read_bytes() != (newest / name).read_bytes()
    shutil.copy(stale, newest / name)


def put_a_stale_manifest(newest: Path) -> None:
    shutil.copy(newest.with_name("step-00000010") / MANIFEST, newest / MANIFEST)


def link_a_file(newest: Path) -> None:
    path = newest / "rank-00002.safetensors"
    path.rename(newest.parent.parent / "elsewhere")
    path.symlink_to(newest.parent.parent / "elsewhere")


def link_the_model(newest: Path) -> None:
    (newest / "model").rename(newest.parent.parent / "model")
    (newest / "model").symlink_to(newest.parent.parent / "model")


def link_the_folder(newest: Path) -> None:
    newest.rename(newest.parent.parent / "elsewhere")
    newest.symlink_to(newest.parent.parent / "elsewhere")


def make_a_folder(newest: Path) -> None:
    (newest / "rank-00002.json").unlink()
    (newest / "rank-00002.json").mkdir()


@pytest.mark.usefixtures("no_tensors")
@pytest.mark.parametrize(
    "damage",
    [
        swap,
        put_a_stale_shard,
        put_a_stale_manifest,
        link_a_file,
        link_the_model,
        link_the_folder,
        make_a_folder,
        *(pytest.param(lambda folder, n=name: (folder / n).unlink(), id=f"no {name}")
          for name in ("rank-00003.safetensors", "rank-00001.json", "weights.json", "model/config.json")),
    ],
)  # fmt: skip
def test_swapped_stale_missing_and_linked_files_are_found(
    checkpoints: Path, newest: Path, damage: Callable[[Path], None]
) -> None:
    damage(newest)

    assert_passed_over(checkpoints, damage)
    if not newest.is_symlink():
        assert verify_checkpoint(newest).problems


def rewrite_manifest(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """As somebody would who knows the format: with the right hash of itself."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["xxh3_128"]
    change(body)
    own_hash = xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "xxh3_128": own_hash}, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text)


@pytest.mark.usefixtures("no_tensors")
@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "model/../../outside", "model/..", "model/a/b", "model//a", "./weights.json",
     "model/a\0b", "rank-00004.safetensors", "notes.txt", "MODEL/config.json"],
)  # fmt: skip
def test_a_name_that_no_checkpoint_has_is_refused(checkpoints: Path, newest: Path, name: str) -> None:
    (checkpoints.parent / "outside").write_bytes(b"")
    entry = {"size": 0, "xxh3_128": xxhash.xxh3_128(b"").hexdigest()}

    rewrite_manifest(newest, lambda body: body["files"].update({name: entry}))

    assert "refused" in str(why_incomplete(newest))
    assert_passed_over(checkpoints, name)


@pytest.mark.usefixtures("no_tensors")
@pytest.mark.parametrize(
    "change",
    [
        {"step": 21},
        {"step": -1},
        {"layout": {"data_parallel": 10**9, "tensor_parallel": 10**9, "accumulation": 1}},
        {"layout": {"data_parallel": "2", "tensor_parallel": 2, "accumulation": 1}},
        {"layout": None},
        {"files": {}},
        {"files": None},
        {"schema": 1},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    checkpoints: Path, newest: Path, change: dict[str, object]
) -> None:
    rewrite_manifest(newest, lambda body: body.update(change))

    assert_passed_over(checkpoints, change)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.mark, "a checkpoint has run code")


def load_everything(checkpoints: Path) -> None:
    found, _ = found_by_auto(checkpoints)
    state = open_state(found, WEIGHTS, single_world())
    for kind in state.kinds:
        for name in state.names:
            state.read_into(kind, name, torch.empty(state.num_elements(name)))
    assert state.scalars
    for rank in range(found.manifest.layout.num_ranks):
        restore_rng(found.folder, rank, torch.device("cpu"))


def test_a_pickle_is_never_run_whatever_file_it_is_put_into(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    checkpoints = tmp_path / "checkpoints"
    folder = write_checkpoint(checkpoints, 20, layout=FOUR_RANKS)
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    assert len(names) == 12
    for name in names:
        for content in (pickle.dumps(Bomb(mark)), pickle.dumps(Bomb(mark), protocol=0)):
            shutil.rmtree(folder)
            write_checkpoint(checkpoints, 20, layout=FOUR_RANKS)
            (folder / name).write_bytes(content)
            if name != MANIFEST:  # with the right hash, so that the file itself is opened
                entry = {"size": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
                rewrite_manifest(folder, lambda body, n=name, e=entry: body["files"].update({n: e}))
            if name == "model/config.json":
                load_everything(checkpoints)  # not opened at all
            else:
                with pytest.raises(CheckpointError, match="step-00000020"):
                    load_everything(checkpoints)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb works"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "nul", "[]"])
@pytest.mark.parametrize("name", ["training.json", "weights.json", "rank-00000.json"])
def test_json_made_to_break_a_reader_ends_with_a_message(tmp_path: Path, name: str, text: str) -> None:
    folder = write_checkpoint(tmp_path, 20)
    content = text.encode()
    (folder / name).write_bytes(content)
    entry = {"size": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
    rewrite_manifest(folder, lambda body: body["files"].update({name: entry}))

    with pytest.raises(MegatuneError, match=name):
        load_everything(tmp_path)
