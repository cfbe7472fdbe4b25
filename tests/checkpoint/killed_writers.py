"""What the trials kill: megatune's own writer, and writers with one thing each done as it must not be done."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from waiting_saves import save_checkpoint
from written_checkpoints import KINDS, SMALL, piece

from megatune.checkpoint import folders
from megatune.checkpoint.in_flight import SaveInFlight
from megatune.checkpoint.layout import TRAINING, Layout, rank_file, read_json
from megatune.checkpoint.read import find_checkpoint
from megatune.checkpoint.saved_state import SavedPieces
from megatune.checkpoint.snapshot import HostCopy
from megatune.checkpoint.tensors import SliceFile
from megatune.checkpoint.weights_index import WeightEntry
from megatune.checkpoint.write import Shared
from megatune.engine.state import RankState
from megatune.engine.world import World, single_world
from megatune.launch.checkpoints import folder_name, step_of
from megatune.model.collectives import TensorGroup

KEEP = 2
LAYOUT = Layout(data_parallel=2, tensor_parallel=1)
ENTRIES = {**SMALL, "large": WeightEntry(shape=(256, 256), cut=None, transposed=False)}


def rank_world(rank: int) -> World:
    """The place of one of two data-parallel ranks; their group is the whole process group."""
    return World(
        rank=rank,
        size=LAYOUT.num_ranks,
        tensor_parallel=1,
        device=torch.device("cpu"),
        data_group=None,
        data_ranks=(0, 1),
        tensor_group=TensorGroup(),
    )


def state_after(step: int, rank: int) -> RankState:
    """Other numbers in every place, every rank and every step."""
    tensors = {
        kind: {name: piece(kind, name, ENTRIES, LAYOUT, rank) + step for name in ENTRIES} for kind in KINDS
    }
    scalars = {"optimizer": {"step": {"value": float(step)}}, "loss_scale": {}}
    return RankState(tensors, scalars)


def training_after(step: int) -> dict[str, Any]:
    """Every third checkpoint is the best so far."""
    return {"state": {"step": step, "best_step": step - step % 3 or None}, "identity": {}}


def shared_after(step: int) -> Shared:
    return Shared(
        step=step,
        training=training_after(step),
        weights={name: entry.to_json() for name, entry in ENTRIES.items()},
        write_model=lambda folder: folder.joinpath("config.json").write_text("{}"),
    )


class Writer:
    """Saves, points and prunes as a run does that waits for its checkpoints (train/saves.py)."""

    def start(self, run: Path, world: World) -> int:
        """Clear up after an earlier start; the step to go on after. Collective."""
        checkpoints = run / "checkpoints"
        world.first_rank(lambda: folders.remove_unfinished(checkpoints))
        found, _ = find_checkpoint(checkpoints, "auto", world)
        return found.manifest.step if found else 0

    def save(self, run: Path, world: World, step: int) -> None:
        """Save the state after `step`. Collective."""
        save_checkpoint(
            run / "checkpoints", world=world, state=state_after(step, world.rank), shared=shared_after(step)
        )

    def tend(self, run: Path, world: World, step: int) -> None:
        """Replace the hints and let go of old checkpoints. Collective."""
        world.first_rank(lambda: self.tend_alone(run, step))

    def tend_alone(self, run: Path, step: int) -> None:
        """`tend`, on the first rank."""
        checkpoints, best_step = run / "checkpoints", training_after(step)["state"]["best_step"]
        best = checkpoints / folder_name(best_step) if best_step else None
        newest = checkpoints / folder_name(step)
        folders.write_hint(run / "latest", newest)
        folders.write_hint(run / "best", best)
        protected = {folder for folder in (newest, best) if folder is not None}
        folders.prune(checkpoints, KEEP, protected=protected)

    def last_step(self, run: Path) -> int | None:
        """The step a next start would go on after, once each of its bytes is what was saved.

        Raises CheckpointError or AssertionError where it is not.
        """
        found, _ = find_checkpoint(run / "checkpoints", "auto", single_world())
        if found is None:
            return None
        step = found.manifest.step
        assert found.training == training_after(step), f"training.json of step {step}: {found.training}"
        for rank in range(LAYOUT.num_ranks):
            pieces = SavedPieces(found.folder, LAYOUT, found.weights, LAYOUT, ENTRIES, rank)
            for kind, named in state_after(step, rank).tensors.items():
                for name, expected in named.items():
                    read = torch.empty(pieces.num_elements(name))
                    pieces.read_into(kind, name, read)
                    assert torch.equal(read, expected), f"{kind}/{name} of rank {rank}, step {step}"
        self.check_hints(run, step)
        return step

    def check_hints(self, run: Path, newest: int) -> None:
        """The best checkpoint stands, and hints are whole or not there."""
        checkpoints = run / "checkpoints"
        found, passed_over = folders.whole_and_passed_over(checkpoints)
        assert not passed_over, f"left under a checkpoint's name: {passed_over}"
        whole = [folder.name for folder in found]
        if training_after(newest)["state"]["best_step"]:
            assert folders.best_of(found) is not None, f"the best is gone; left: {whole}"
        for hint in (run / "latest", run / "best"):
            named = hint.read_text().strip() if hint.exists() else None
            assert named is None or named in whole, f"{hint.name} names {named!r}; there are {whole}"


class Behind(Writer):
    """Saves behind training, which changes every number meanwhile."""

    def __init__(self) -> None:
        self.copy = HostCopy()

    def save(self, run: Path, world: World, step: int) -> None:
        state = state_after(step, world.rank)
        save = self.begin(run, world, step, state)
        save.wait_until_copied()
        while world.any_ranks(not save.is_ready)[0] or not save.advance():
            for held in state.tensors.values():
                for tensor in held.values():
                    tensor.add_(1)
            time.sleep(0.001)  # a step leaves the writing thread some of the processor

    def begin(self, run: Path, world: World, step: int, state: RankState) -> SaveInFlight:
        save = SaveInFlight(
            run / "checkpoints",
            world=world,
            state=state,
            shared=shared_after(step),
            then=lambda: self.tend_alone(run, step),
        )
        save.begin(self.copy)
        return save

    def tend(self, run: Path, world: World, step: int) -> None:
        """Done by the thread that commits."""


class BehindUnfinished(Behind):
    """Says that a checkpoint is saved once its writing has begun."""

    def save(self, run: Path, world: World, step: int) -> None:
        before: SaveInFlight | None = getattr(self, "before", None)
        while before is not None and (world.any_ranks(not before.is_ready)[0] or not before.advance()):
            pass
        self.before = self.begin(run, world, step, state_after(step, world.rank))


class BehindUncopied(Behind):
    """Writes the numbers that training changes."""

    def __init__(self) -> None:
        self.copy = _NoCopy()


class _NoCopy(HostCopy):
    def of(self, state: RankState) -> RankState:
        return state


class PrunesFirst(Writer):
    """Makes room for a checkpoint before it stands."""

    def save(self, run: Path, world: World, step: int) -> None:
        def make_room() -> None:
            for folder in sorted((run / "checkpoints").glob("step-????????")):
                shutil.rmtree(folder)

        world.first_rank(make_room)
        super().save(run, world, step)

    def check_hints(self, run: Path, newest: int) -> None:
        """Not what this one is to be found by."""


class LatestFirst(Writer):
    """Writes in place and moves `latest` before all ranks are done, as DeepSpeed's default does."""

    def start(self, run: Path, world: World) -> int:
        return world.first_rank(lambda: self._latest(run)) or 0

    def save(self, run: Path, world: World, step: int) -> None:
        folder = run / "checkpoints" / folder_name(step)
        world.first_rank(lambda: folder.mkdir(parents=True, exist_ok=True))
        if world.is_first:
            (folder / TRAINING).write_text(json.dumps(training_after(step)))
            folders.write_hint(run / "latest", folder)
        held = {
            f"{kind}/{name}": tensor
            for kind, named in state_after(step, world.rank).tensors.items()
            for name, tensor in named.items()
        }
        save_file(held, folder / rank_file(world.rank, "safetensors"))
        world.barrier()

    def tend(self, run: Path, world: World, step: int) -> None:
        def let_go() -> None:
            for folder in (run / "checkpoints").iterdir():
                if (step_of(folder) or 0) <= step - KEEP:
                    shutil.rmtree(folder)

        world.first_rank(let_go)

    def last_step(self, run: Path) -> int | None:
        step = self._latest(run)
        if step is None:
            return None
        folder = run / "checkpoints" / folder_name(step)
        assert read_json(folder / TRAINING) == training_after(step)
        for rank in range(LAYOUT.num_ranks):
            file = SliceFile(folder / rank_file(rank, "safetensors"))
            for kind, named in state_after(step, rank).tensors.items():
                for name, expected in named.items():
                    assert torch.equal(file.read(f"{kind}/{name}"), expected), f"{kind}/{name}"
        return step

    def _latest(self, run: Path) -> int | None:
        hint = run / "latest"
        return step_of(Path(hint.read_text().strip())) if hint.exists() else None


WRITERS: dict[str, type[Writer]] = {
    kind.__name__: kind
    for kind in (Writer, Behind, PrunesFirst, LatestFirst, BehindUnfinished, BehindUncopied)
}
assert math.prod(ENTRIES["large"].shape) > 50_000, "a write long enough to be killed in"
