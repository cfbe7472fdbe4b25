"""What a run ran on: the text of env.txt."""

import importlib.metadata
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import megatune
from megatune.launch.devices import count_cpus, count_gpus, cpu_model, host_memory_bytes
from megatune.units import format_bytes

_PACKAGES = (
    "megatune",
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "pydantic",
    "mpi4py",
    "flash-attn",
    "liger-kernel",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)
_GIT_TIMEOUT_S = 10.0


def environment_report() -> str:
    """Versions, machine and commit, a `name: value` per line. No variable of the environment is in it."""
    facts = {
        "written": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "cpu": cpu_model(),
        "cpu cores": count_cpus(),
        "host memory": format_bytes(host_memory_bytes()),
        "gpus": count_gpus(),
        "megatune commit": source_commit(),
        **{f"package {name}": _version(name) for name in _PACKAGES},
    }
    return "".join(f"{name}: {'n/a' if value is None else value}\n" for name, value in facts.items())


def source_commit(folder: Path = Path(megatune.__file__).parent) -> str | None:
    """The git commit of megatune's own source, with `-dirty` when files differ; None outside a checkout."""
    # An installed copy below somebody's own repository must not report that repository's commit.
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "HEAD") if tracked is not None else None
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here, or its folder does not answer: the commit is unknown
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
