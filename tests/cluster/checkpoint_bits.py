"""Whether two runs have saved the same bits."""

from pathlib import Path


def same_weights(first: Path, second: Path) -> bool:
    """Whether the newest checkpoints of two run folders hold the same tensor files, byte by byte."""
    return _tensor_files(first) == _tensor_files(second)


def _tensor_files(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("step-????????"))
    files = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    assert files, f"{newest} holds tensors"
    return files
