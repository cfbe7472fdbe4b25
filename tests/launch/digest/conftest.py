"""A run folder to plant logs in."""

from pathlib import Path

import pytest
from planted import Planted


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)
