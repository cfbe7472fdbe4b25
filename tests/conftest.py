"""Fixtures for all tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Before torch is imported anywhere: one thread a rank, no hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

from ssh_hosts import SshHosts, started_sshd
from worlds import Worlds

from megatune.launch.extensions import ensure_built, extension_folder
from megatune.launch.processes import module_command

# The same examples in every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Keep all tests on the CPU, where they must pass, but for `-m gpu`. Before torch is imported too."""
    # Background jobs are deaf to SIGINT, and under nohup to SIGHUP; what a process ignores its children
    # ignore too, and the tests that send these signals would wait for ever.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if config.getoption("markexpr") != "gpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")


# Files of more than a minute each on two cores, the longest first. One that begins last keeps the others waiting.
LONG_FILES = (
    "checkpoint/test_every_stop.py",
    "model/test_family_parity.py",
    "cli/test_foreign_launchers.py",
    "tune/test_tune_command.py",
    "bench/test_bench_command.py",
    "doctor/test_doctor_runs.py",
    "checkpoint/test_kills.py",
    "checkpoint/test_state.py",
    "cli/test_faults_while_training.py",
    "cli/test_torchrun_restarts.py",
    "train/test_verify_command.py",
    "cli/test_train_over_ssh.py",
    "evaluate/test_generation.py",
    "cli/test_planned_and_measured.py",
    "cli/test_evaluate_command.py",
    "checkpoint/test_kill_points.py",
    "tune/test_tune_benchmark.py",
    "cli/test_launched_ranks.py",
    "data/test_prepare_with_mpi.py",
    "checkpoint/test_layouts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on the cluster take longest of all: they go first, then the long files."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}

    def place(item: pytest.Item) -> int:
        return -1 if item.get_closest_marker("cluster") else places.get(item.path, len(places))

    items.sort(key=place)


class _ByFile(LoadScopeScheduling):
    """Tests of a file share one process, and so do all tests on the cluster.

    Two clusters at once on a small machine reach their timeouts. xdist's own groups (3.8) do not reach pytest 9.2,
    which no longer reads the node id they are written into.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "cluster" if Path(file).parent.name == "cluster" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What `make test` divides tests over processes with."""
    return _ByFile(config, log)


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Real ranks: `worlds.run(4, function, *args)` runs a module-level function on four of them."""
    pool = Worlds()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def extensions() -> Path:
    """The folder with DeepSpeed's compiled Adam: built as `megatune train` builds it, once per environment."""
    folder = extension_folder()
    ensure_built(module_command("megatune.engine.build_ops", "cpu_adam"), folder)
    return folder


@pytest.fixture(scope="session")
def ssh_hosts(session_folder: Path) -> Iterator[SshHosts]:
    """A real sshd on this machine, with two names."""
    with started_sshd(session_folder / "ssh") as hosts:
        yield hosts


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of the session share: tiny models are written once."""
    return tmp_path_factory.mktemp("shared")
