"""A node that a batch script can run on without Slurm: its programs write down what they are given.

`FakeNode.run` starts bash on a script. srun starts what it is given once, as rank 0 in a group of its own,
and passes signals on to the whole group, as slurmstepd does. Answers and the ranks' exit codes are files.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = """\
import json, os, signal, subprocess, sys
name, folder = os.path.basename(sys.argv[0]), {folder!r}
wanted = ("MASTER_", "OMP_", "MEGATUNE_", "TORCH_EXT", "NCCL_", "GLOO_", "SLURM_RESTART", "SITE_")
entry = {{"program": name, "arguments": sys.argv[1:],
         "environment": {{key: value for key, value in os.environ.items() if key.startswith(wanted)}}}}
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps(entry) + "\\n")
def read(kind):
    try:
        with open(f"{{folder}}/{{kind}}") as file:
            return file.read()
    except FileNotFoundError:
        return ""
if name == "python":
    if "megatune.data.mpi_check" in sys.argv:
        sys.exit(int(read("python.meets") or 0))
    if "train" not in sys.argv:
        sys.exit(int(read("python.other") or 0))
    codes = read("python.codes").split() or ["0"]
    with open(folder + "/python.codes", "w") as file:
        file.write(" ".join(codes[1:]))
    if codes[0].startswith("signal"):
        os.kill(os.getpid(), int(codes[0][6:]))
    if codes[0] == "wait":
        got = []
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda number, frame: got.append(number))
        open(folder + "/listening", "w").close()
        while not got:
            signal.pause()
        with open(folder + "/got", "w") as file:
            file.write(str(int(got[0])))
        sys.exit(75)
    sys.exit(int(codes[0]))
if name == "srun" and {python!r} in sys.argv:
    start = sys.argv.index("bash") if "bash" in sys.argv else sys.argv.index({python!r})
    child = subprocess.Popen(sys.argv[start:], start_new_session=True, env={{**os.environ, "SLURM_PROCID": "0"}})
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.killpg(child.pid, number))
    sys.exit(child.wait() % 256)
if name == "srun" and "guard" in sys.argv:
    signal.pause()
answer = read(f"{{name}}.{{sys.argv[1].lstrip('-')}}" if name == "scontrol" else name)
if name == "scontrol" and sys.argv[1:3] == ["show", "hostnames"] and not answer:
    answer = sys.argv[3].replace(",", "\\n") + "\\n"
sys.stdout.write(answer)
sys.exit(int(read(name + ".code") or 0))
"""
_PROGRAMS = ("srun", "scontrol", "sinfo", "squeue", "sbatch", "scancel", "python")
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Ended:
    """An ended batch script."""

    code: int
    text: str


class FakeNode:
    """Programs in `folder`/bin, answers in `folder`; `python` is what a job's site profile names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.python = str(self.bin / "python")
        source = f"#!{sys.executable} -SE\n" + _PROGRAM.format(folder=str(folder), python=self.python)
        for name in _PROGRAMS:
            (self.bin / name).write_text(source)
            (self.bin / name).chmod(0o755)

    def answer(self, name: str, text: str) -> None:
        """Have a program print `text`: `sinfo`, `sbatch`, `scontrol.show`; `NAME.code` is its exit code."""
        (self.folder / name).write_text(text)

    def ranks_end_with(self, *codes: object) -> None:
        """How each start of `megatune train` ends: a code, `signalN`, or `wait` for a signal and then 75."""
        (self.folder / "python.codes").write_text(" ".join(map(str, codes)))

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "n1,n2",
            "SLURM_JOB_PARTITION": "gpu",
            **more,
        }

    def start(self, script: str, **environment: str) -> "subprocess.Popen[str]":
        path = self.folder / "job.sbatch"
        path.write_text(script, encoding="utf-8")
        return subprocess.Popen(
            ["bash", str(path)],
            env=self.environment(**environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, **environment: str) -> Ended:
        """Run a script to its end."""
        return self.wait(self.start(script, **environment))

    def wait(self, process: "subprocess.Popen[str]") -> Ended:
        try:
            out, _ = process.communicate(timeout=_DEADLINE_S)
        finally:
            # Slurm ends what a job leaves behind with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return Ended(process.returncode, out)

    def wait_until_ranks_listen(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not (self.folder / "listening").exists():
            assert time.monotonic() < deadline, "no rank has come up"
            time.sleep(0.01)

    def calls(self, *programs: str) -> list[dict[str, Any]]:
        """What was called, in order."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["program"] in programs]

    def trainings(self) -> list[dict[str, Any]]:
        """The calls of the job's Python that train."""
        return [call for call in self.calls("python") if "train" in call["arguments"]]
