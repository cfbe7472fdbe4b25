"""Ranks of the doctor that a test starts by hand, each with an environment and a folder of its own."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "megatune", "doctor"]


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.out)

    def rung(self, name: str) -> dict[str, Any]:
        return next(rung for rung in self.report["rungs"] if rung["name"] == name)

    def verdicts(self, *wanted: str) -> list[str]:
        """Names of the rungs with one of these verdicts."""
        return [rung["name"] for rung in self.report["rungs"] if rung["verdict"] in wanted]


class Ranks:
    """A job whose ranks meet on a free port of this machine. On its own node each, if `node_names`."""

    def __init__(self, cache: Path, world_size: int, *, node_names: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.world_size = world_size
        self._cache = cache
        self._node_names = node_names
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self,
        rank: int,
        *arguments: object,
        command: list[str] = COMMAND,
        cwd: Path | None = None,
        **environment: str,
    ) -> subprocess.Popen[str]:
        nodes = self._node_names
        process = subprocess.Popen(
            [*command, *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self._cache,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(self.world_size),
                "LOCAL_RANK": "0" if nodes else str(rank),
                "LOCAL_WORLD_SIZE": "1" if nodes else str(self.world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
                "MEGATUNE_CACHE": str(self._cache),
                **({"SLURMD_NODENAME": f"n{rank + 1}"} if nodes else {}),
                **environment,
            },
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 60) -> Ended:
        out, err = process.communicate(timeout=timeout_s)
        return Ended(process.returncode, out, err)

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
