"""One trial: `megatune train` in processes of its own, watched, and ended by the stop signal it knows."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from megatune.config import path_override
from megatune.launch.processes import kill_group, module_command, start_process
from megatune.launch.ranks import child_environment
from megatune.launch.run_folder import RunFolder
from megatune.launch.signals import REPEAT_S, STOP_SIGNALS, take_signals

_TICK_S = 0.05


class StopSignals:
    """Notes stop signals while it is entered: the first asks to stop, a second one a moment later to stop at once."""

    def __init__(self) -> None:
        self._asked_at = math.inf
        self._give_back: Callable[[], None] = lambda: None
        self.at_once = False

    @property
    def asked(self) -> bool:
        return self._asked_at < math.inf

    def __enter__(self) -> Self:
        self._give_back = take_signals(STOP_SIGNALS, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now = time.monotonic()
        self.at_once |= now > self._asked_at + REPEAT_S
        self._asked_at = min(self._asked_at, now)


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """How a trial ended."""

    exit_code: int
    """Negative for a signal."""
    ended_by: Literal["itself", "watch", "stop"]
    """`watch` and `stop` have sent it a stop signal before it ended."""
    seconds: float


def run_trial(
    arguments: Sequence[str],
    *,
    log: Path,
    watch: Callable[[], bool],
    stop: StopSignals,
    poll_s: float = 0.5,
    launcher: Sequence[str] = (sys.executable,),
    grace_s: float | None = None,
) -> TrialEnd:
    """Run `megatune train` with `arguments` to its end; what it prints is appended to `log`.

    `watch` is called every `poll_s` seconds and says whether to end the trial, which then gets SIGTERM,
    saves and ends. A signal in `stop` does the same; a second one kills, and so does `grace_s` after the first,
    where one is given. The kernel ends the trial when this process dies. `launcher`: Python, with what stands before
    it. Call it from the main thread. Raises LaunchError when it cannot be started.
    """
    started = time.monotonic()
    with log.open("ab") as output:
        process = start_process(
            module_command("megatune", "train", *arguments, python=launcher),
            environment=child_environment({}),
            stdout=output.fileno(),
            stderr=subprocess.STDOUT,
        )
    try:
        ended_by = _wait(process, watch, stop, poll_s, grace_s)
    finally:
        kill_group(process)
        process.wait()
    return TrialEnd(exit_code=process.returncode, ended_by=ended_by, seconds=time.monotonic() - started)


def _wait(
    process: subprocess.Popen[bytes],
    watch: Callable[[], bool],
    stop: StopSignals,
    poll_s: float,
    grace_s: float | None,
) -> Literal["itself", "watch", "stop"]:
    ended_by: Literal["itself", "watch", "stop"] = "itself"
    next_look = time.monotonic() + poll_s
    kill_at = math.inf
    while process.poll() is None:
        now = time.monotonic()
        if stop.at_once or now >= kill_at:
            kill_group(process)
        elif stop.asked and ended_by != "stop":
            if ended_by == "itself":
                process.send_signal(signal.SIGTERM)  # a second one would kill it
                kill_at = now + (math.inf if grace_s is None else grace_s)
            ended_by = "stop"
        elif now >= next_look:
            next_look = now + poll_s
            if watch() and ended_by == "itself":
                process.send_signal(signal.SIGTERM)
                kill_at = now + (math.inf if grace_s is None else grace_s)
                ended_by = "watch"
        time.sleep(_TICK_S)
    return ended_by


def last_lines(log: Path, count: int = 12) -> str:
    """The end of what a trial printed, without empty lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line for line in lines[-count:] if line.strip())


def measuring_overrides(run: RunFolder, num_steps: int) -> list[str]:
    """What makes a short, measured training of a run: no evaluation, nothing saved, every step on record."""
    return [
        path_override("train.output_dir", run.path),
        f"train.max_steps={num_steps}",
        "data.validation=null",
        "evaluate=null",
        "checkpoint=null",
        "checkpoint.resume=none",
        "checkpoint.save_at_end=false",
        "checkpoint.export_at_end=false",
        'health.on_spike="off"',
        "launch.max_restarts=0",
        "report_to=[]",
    ]
