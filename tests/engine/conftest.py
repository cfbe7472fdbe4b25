"""DeepSpeed's compiled Adam, for the tests that offload."""

import sys
from pathlib import Path

import pytest

from megatune.launch.extensions import ensure_built, extension_folder


@pytest.fixture(scope="session")
def extensions() -> Path:
    """The folder with DeepSpeed's compiled Adam: built as `megatune train` builds it, once per environment."""
    folder = extension_folder()
    ensure_built([sys.executable, "-m", "megatune.engine.build_ops", "cpu_adam"], folder)
    return folder
