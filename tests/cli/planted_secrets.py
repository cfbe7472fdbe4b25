"""Secrets as they stand in the environment of a job, and where to look for them."""

from pathlib import Path

SECRETS = {
    "HF_TOKEN": "hf_planted0token0of0a0test",
    "WANDB_API_KEY": "planted0wandb0key",
    "AWS_SECRET_ACCESS_KEY": "planted0aws/key+of0a0test",
    "HTTPS_PROXY": "http://somebody:planted0proxy0password@127.0.0.1:9",
    "https_proxy": "http://somebody:planted0proxy0password@127.0.0.1:9",
}
_WORD = b"planted0"


def files_with_secrets(folder: Path) -> list[str]:
    """Every file below `folder` with a planted secret in any of its bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert paths, f"{folder} holds no file at all"
    return sorted(str(path) for path in paths if _WORD in path.read_bytes())
