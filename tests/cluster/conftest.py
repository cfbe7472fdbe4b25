"""Fixtures of the cluster tests: one lab for all of them, with three nodes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster_runs import Cluster
from lab import Lab, why_not


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A running Slurm cluster of three nodes; skipped with the reason where none can be started."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    lab = Lab(num_nodes=3)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path, session_folder: Path) -> Iterator[Cluster]:
    """The lab with a tiny model and a folder for runs; jobs that a test leaves are cancelled after it."""
    # The shared file system of the lab is this machine's own. Its /tmp is shared with it, too.
    cluster = Cluster(lab, tmp_path, session_folder)
    try:
        yield cluster
    finally:
        cluster.clear()
