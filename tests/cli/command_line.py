"""The real command line as a subprocess, and what a test of it needs: a tiny model with tokenizer, a run file."""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from tiny_models import write_tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, fast

VOCABULARY = 400
SENTENCES = ["The capital of France is Paris.", "2 + 2 = 4", "Once upon a time there was a user."]


@dataclass(frozen=True)
class Done:
    """An ended command."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All it printed; long lines joined, so that a message can be searched."""
        return " ".join((self.out + self.err).split())


def megatune(*arguments: object, timeout_s: float = 300, **environment: str) -> Done:
    """Run the command line in a process of its own.

    One with variables of its own is a new interpreter; the others are forks of one that has imported
    everything, which saves seconds of imports a test.
    """
    command = [sys.executable, "-m", "megatune", *map(str, arguments)]
    if not environment:
        return forked_commands().run(command, timeout_s)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


FORK_COMMANDS = """
import json, os, sys, time
from megatune.launch.fork_server import ForkServer
server = ForkServer(["megatune.train.rank", "megatune.train.verify.job"])
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    with open(asked["out"], "wb") as out, open(asked["err"], "wb") as err:
        process = server.start(
            asked["command"], environment=asked["environment"], stdout=out.fileno(), stderr=err.fileno()
        )
        while (code := process.poll()) is None:
            time.sleep(0.005)
    print(code, flush=True)
"""


class ForkedCommands:
    """A process that forks itself into the commands it is asked to run, one after another."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORK_COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], timeout_s: float) -> Done:
        """Run a `python -m ...` command here, with the environment of this process."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            asked = {"command": command, "environment": dict(os.environ), "folder": str(Path.cwd())}
            print(
                json.dumps({**asked, "out": str(out), "err": str(err)}), file=self._server.stdin, flush=True
            )
            if not select.select([self._server.stdout], [], [], timeout_s)[0]:
                self.close()
                raise subprocess.TimeoutExpired(command, timeout_s, out.read_bytes(), err.read_bytes())
            return Done(int(self._server.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process, and what it has started."""
        forked_commands.cache_clear()
        self._server.kill()
        self._server.wait()


@cache
def forked_commands() -> ForkedCommands:
    """The one of this test session."""
    commands = ForkedCommands()
    atexit.register(commands.close)
    return commands


def rank_process(launcher: int, rank: int) -> int:
    """The process of a rank among all that the launcher has started, by the name it has in ps."""
    (found,) = [
        pid
        for pid in _descendants(launcher)
        if Path(f"/proc/{pid}/comm").read_text().strip() == f"rank-{rank}"
    ]
    return found


def _descendants(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


def assert_refused(done: Done, *words: str) -> None:
    """The user's mistake: exit 2, a message with `words`, no traceback."""
    assert done.code == 2, done.text
    assert "Traceback" not in done.text
    assert done.err.splitlines()[-1].strip(), "the message is the last thing on the screen"
    for word in words:
        assert word in done.text


def assert_nothing_looks_complete(output_dir: Path) -> None:
    """A run that failed leaves no checkpoint, export or prepared set under its final name."""
    finished = [
        path
        for pattern in ("checkpoints/step-????????", "export", "prepared/*")
        for path in output_dir.glob(pattern)
    ]
    assert finished == []


def write_model(folder: Path, name: str = "gpt2", **changes: Any) -> Path:
    """A tiny model with a tokenizer whose ids its embedding holds."""
    path = write_tiny_model(name, folder, **{"vocab_size": VOCABULARY, **changes})
    tokenizer = fast(byte_level(VOCABULARY))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def write_run(path: Path, model: Path, rows: Path, output_dir: Path) -> Path:
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": str(rows), "max_seq_length": 64},
        "train": {"output_dir": str(output_dir), "max_steps": 4, "learning_rate": 1e-3},
        "precision": "fp32",
        "launch": {"nproc_per_node": 1},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def steps_of(output_dir: Path) -> list[dict[str, Any]]:
    """The step records of a run folder."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == "step"]
