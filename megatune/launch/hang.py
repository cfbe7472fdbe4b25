"""Which rank of a job that stands still is the cause, and the folder with all there is to know about it."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatune.launch.flight_recorder import traces
from megatune.launch.heartbeat import Beat
from megatune.launch.run_folder import RunFolder

_LAST_METRICS = 200
_METRICS_TAIL_BYTES = 256 * 1024
_COLLECTIVE = re.compile(
    r'File ".*(torch/distributed/|deepspeed/comm/|megatune/engine/(?:world|meeting))', re.IGNORECASE
)

# NCCL's collectives return at once on a GPU: the host waits where it next needs a number, copies one there, or waits
# for a stream. Only where that is the innermost frame: all that a rank does is called from some of these files.
_WAIT_FOR_GPU = re.compile(
    r'\(most recent call first\):\n +File ".*(torch/cuda/(?:streams|__init__)|deepspeed/runtime/utils'
    r"|megatune/(?:train/step|engine/zero|model/forward)|transformers/masking_utils)\.py\""
)


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The verdict over a job that stands still."""

    suspects: tuple[Beat, ...]
    reason: str
    limit_s: float

    def __str__(self) -> str:
        named = "; ".join(map(str, self.suspects))
        return f"hang: no progress for {self.limit_s:g} s. Where it hangs: {named} ({self.reason})"


def judge_hang(beats: Sequence[Beat], stacks: Mapping[int, str], limit_s: float) -> Hang:
    """Which ranks the others wait for. `stacks`: by rank, of those that answered when asked for them.

    A rank that did not answer is stopped or stuck in native code. Else it is one that waits in no
    collective, or for what a GPU does with one, while others do. Else the one that has come least far.
    """
    silent = [beat for beat in beats if beat.rank not in stacks]
    if silent and len(silent) < len(beats):
        return Hang(suspects=tuple(silent), reason="it does not answer: stopped, or stuck", limit_s=limit_s)
    busy = [beat for beat in beats if beat.rank in stacks and not _is_waiting(stacks[beat.rank])]
    if busy and len(busy) < len(beats):
        return Hang(suspects=tuple(busy), reason="the others wait for it in a collective", limit_s=limit_s)
    least = min(beat.progress for beat in beats)
    behind = [beat for beat in beats if beat.progress == least]
    if len(behind) < len(beats):
        return Hang(suspects=tuple(behind), reason="it has come least far", limit_s=limit_s)
    return Hang(suspects=tuple(beats), reason="all ranks stand at the same place", limit_s=limit_s)


def _is_waiting(stack: str) -> bool:
    return bool(_COLLECTIVE.search(stack) or _WAIT_FOR_GPU.search(stack))


def write_crash_bundle(
    folder: RunFolder, hang: Hang, beats: Sequence[Beat], stacks: Mapping[int, str]
) -> Path:
    """Put the verdict, beats, stacks, NCCL's traces, last metrics and versions into RUN/crash/<time>.

    Returns that folder.

    No variable of the environment is written. Raises OSError when the disk does not take it.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    bundle = folder.crash / stamp
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "verdict.txt").write_text(f"{hang}\n", encoding="utf-8")
    told = [asdict(beat) for beat in beats]
    (bundle / "heartbeats.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for rank, stack in stacks.items():
        (bundle / f"stack-rank-{rank:05d}.txt").write_text(stack, encoding="utf-8")
    for trace in traces(folder.heartbeats):
        shutil.copyfile(trace, bundle / trace.name)
    if folder.metrics.is_file():
        (bundle / "metrics-tail.jsonl").write_bytes(_tail(folder.metrics))
    if folder.environment.is_file():
        shutil.copyfile(folder.environment, bundle / "env.txt")
    return bundle


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _METRICS_TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    return b"".join(lines[-_LAST_METRICS:])
