"""What the launcher and a node say to each other over one ssh connection, a JSON object a line.

The launcher writes to the node's standard input: first a task, then `stop` and `end`; the end of
that input means that the launcher is gone. The node writes to its standard output, each line behind
a mark: a login shell may print there, too, before the node runs.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatune.launch.verdict import RankExit

_MARK = b"\x01megatune "


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a node says of itself before it is given a task."""

    version: str
    python: str
    host: str
    port: int
    """A free port, kept for MASTER_PORT as long as the node runs."""
    address: str | None
    """The address of this host at which the launcher has reached it, where sshd tells it."""


@dataclass(frozen=True, kw_only=True)
class NodeTask:
    """The ranks that a node has to start."""

    command: list[str]
    num_ranks: int
    first_rank: int
    world_size: int
    master_addr: str
    master_port: int
    log_dir: str
    environment: dict[str, str]
    echo_rank: int
    grace_s: float


def encode(kind: str, **values: Any) -> bytes:
    """A line for a node."""
    return json.dumps({"kind": kind, **values}).encode() + b"\n"


def encode_marked(kind: str, **values: Any) -> bytes:
    """A line of a node."""
    return _MARK + encode(kind, **values)


def encode_task(task: NodeTask) -> bytes:
    """The first line for a node."""
    return encode("task", **asdict(task))


def decode(line: bytes) -> dict[str, Any]:
    """What a line for a node says."""
    found: dict[str, Any] = json.loads(line)
    return found


def decode_task(line: bytes) -> NodeTask:
    """The task in the first line for a node."""
    values = decode(line)
    del values["kind"]
    return NodeTask(**values)


def encode_output(stream: int, data: bytes) -> bytes:
    """What the echoed rank printed; `stream`: 1 or 2."""
    return encode_marked("output", stream=stream, data=base64.b64encode(data).decode("ascii"))


def output_of(message: dict[str, Any]) -> tuple[int, bytes]:
    """The stream and the bytes of an `output` message."""
    return int(message["stream"]), base64.b64decode(message["data"])


def encode_exit(ended: RankExit) -> bytes:
    """How a rank ended."""
    return encode_marked("ended", **{**asdict(ended), "log": str(ended.log)})


def exit_in(message: dict[str, Any]) -> RankExit:
    """The end of a rank in an `ended` message."""
    values = {key: value for key, value in message.items() if key != "kind"}
    return RankExit(**{**values, "log": Path(values["log"])})


class MarkedLines:
    """Takes what comes from a node apart: messages, and text of whatever else prints there."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any] | str]:
        """The messages and the lines of text that `data` completes, in order."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            text, mark, message = line.partition(_MARK)
            if text.strip():
                yield text.decode(errors="replace")
            if mark:
                yield decode(message)

    def rest(self) -> str:
        """The text after the last line end."""
        return self._pending.decode(errors="replace")
