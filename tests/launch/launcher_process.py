"""A launcher process whose ranks are small scripts: `run_ranks` as a user meets it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LAUNCHER = """
import json, sys
from pathlib import Path
from megatune.launch.local import run_ranks
asked = json.loads(sys.argv[1])
result = run_ranks([sys.executable, "-m", "rank"], log_dir=Path("logs"), **asked)
Path("result.json").write_text(json.dumps(vars(result)))
sys.exit(result.exit_code)
"""

FORKING_LAUNCHER = """
import json, sys
from pathlib import Path
from megatune.launch.fork_server import ForkServer
from megatune.launch.local import run_ranks
asked = json.loads(sys.argv[1])
server = ForkServer(["json"])
result = run_ranks([sys.executable, "-m", "rank"], log_dir=Path("logs"), start=server.start, **asked)
Path("result.json").write_text(json.dumps(vars(result)))
server.close()
sys.exit(result.exit_code)
"""

RANK_PRELUDE = """
import os, signal, sys, time
from pathlib import Path
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
Path(f"pid-{rank}").write_text(str(os.getpid()))
def wait_for(*ranks):
    while not all(Path(f"pid-{other}").exists() and Path(f"pid-{other}").read_text() for other in ranks):
        time.sleep(0.01)
def save_and_stop(signum, frame):
    Path(f"saved-{rank}").write_text(signal.Signals(signum).name)
    sys.exit(75)
def sleep_through():
    while True:
        time.sleep(0.05)
"""


SAVING_RANK = """
signal.signal(signal.SIGINT, save_and_stop)
signal.signal(signal.SIGTERM, save_and_stop)
signal.signal(signal.SIGUSR2, save_and_stop)
Path(f"ready-{rank}").touch()
sleep_through()
"""


STUBBORN_RANK = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(f"ready-{rank}").touch()
sleep_through()
"""


class Launcher:
    """A launcher process in a folder of its own; `asked` goes to what `code` calls."""

    def __init__(
        self, folder: Path, rank_code: str, asked: dict[str, object], code: str = LAUNCHER, **popen: object
    ) -> None:
        self.folder = folder
        (folder / "rank.py").write_text(RANK_PRELUDE + rank_code)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(asked)],
            cwd=folder,
            # A test run in the background has SIGINT ignored, and would pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen},
        )

    def finish(self) -> tuple[str, str]:
        return self.process.communicate(timeout=30)

    def result(self) -> dict[str, object]:
        return json.loads((self.folder / "result.json").read_text())

    def wait_until_ready(self, num_ranks: int) -> None:
        wait_until(lambda: all((self.folder / f"ready-{rank}").exists() for rank in range(num_ranks)))

    def pids(self) -> list[int]:
        """Of the ranks that have said theirs; one that was killed while it did has left an empty file."""
        texts = [file.read_text() for file in self.folder.glob("pid-*")]
        return [int(text) for text in texts if text]

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank-{rank:05d}.log").read_text()


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
