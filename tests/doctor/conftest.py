"""Fixtures for the doctor's tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from command_line import SENTENCES, write_model, write_run
from doctor_ranks import Ranks


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """`ranks(4, node_names=True)`: a job of four ranks to be started by hand; ended with the test."""
    made: list[Ranks] = []

    def make(world_size: int, *, node_names: bool = False) -> Ranks:
        made.append(Ranks(tmp_path, world_size, node_names=node_names))
        return made[-1]

    yield make
    for job in made:
        job.end()


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run_file(session_folder: Path, output_dir: Path, tmp_path: Path) -> Path:
    model = write_model(session_folder, bos_token_id=0, eos_token_id=0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{{"text": "{SENTENCES[0]}"}}\n')
    return write_run(tmp_path / "run.yaml", model, rows, output_dir)
