"""Worker processes of one machine that tokenise a share of the rows each: started, watched, ended.

They are fresh interpreters and no forks: this process has the threads of torch and of the tokenizer,
and what a fork inherits of those cannot be used.
"""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from megatune.data.handed_tokenizer import handed
from megatune.data.shared import Job, Problem, tallies_of
from megatune.data.tally import Tally
from megatune.errors import LaunchError
from megatune.launch.processes import describe_exit, kill_group, module_command, start_process
from megatune.launch.ranks import child_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnProgress = Callable[[int, int], None]
"""Told how many rows have been tokenised, and how many bytes of the files have been read, by all."""
_BYTES_FOR_A_WORKER = 4 << 20
"""Less than this takes one process no longer than a worker takes to start: two or three seconds."""


def choose_num_workers(
    asked: int | None, num_cpus: int, num_bytes: int, tokenizer: "PreTrainedTokenizerBase"
) -> int:
    """How many processes tokenise; None asks for one a core, but for no more than the data keeps busy.

    A tokenizer whose code came with a model can only be used where it was loaded: 1 then.
    """
    if not type(tokenizer).__module__.startswith("transformers."):
        return 1
    return asked if asked is not None else max(1, min(num_cpus, num_bytes // _BYTES_FOR_A_WORKER))


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    num_rows: int = 0
    num_bytes: int = 0
    result: Tally | Problem | None = None
    pending: bytes = b""


def work_together(job: Job, num_workers: int, on_progress: OnProgress) -> list[Tally]:
    """Have `num_workers` processes write the parts of `job`. Raises the DataError that one alone would.

    Call it from the main thread only. Raises LaunchError when a worker dies.
    """
    payload = pickle.dumps(replace(job, tokenizer=handed(job.tokenizer)))
    workers: list[_Worker] = []
    try:
        for index in range(num_workers):
            workers.append(_start(index, num_workers))
        for worker in workers:  # all of them import at once; each reads when it has done so
            _hand_over(worker, payload)
        _watch(workers, on_progress)
    finally:
        for worker in workers:
            kill_group(worker.process)
            worker.process.wait()
            for stream in (worker.process.stdin, worker.process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):  # what a dead worker did not read
                        stream.close()
    return tallies_of([worker.result for worker in workers if worker.result is not None])


def _start(index: int, count: int) -> _Worker:
    # One thread, but one of the library's own pool: it encodes faster than the caller's, nobody here knows why.
    # Two workers, 24 MB, four rounds in turn: 5.1 to 5.8 s beside 5.5 to 6.2 s.
    one_thread = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = child_environment(one_thread)
    process = start_process(
        module_command("megatune.data.worker", str(index), str(count)),
        environment=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
    )
    return _Worker(index, process)


def _hand_over(worker: _Worker, payload: bytes) -> None:
    stdin = worker.process.stdin
    assert stdin is not None, "asked for in _start"
    try:
        stdin.write(payload)
        stdin.close()
    except BrokenPipeError:
        worker.process.wait()  # it died while starting: `_watch` tells how


def _has_fileno(stream: IO[str]) -> bool:
    try:
        stream.fileno()
    except OSError:
        return False
    return True


def _watch(workers: list[_Worker], on_progress: OnProgress) -> None:
    """Read what the workers say until all have said their last."""
    by_fd = {_stdout(worker).fileno(): worker for worker in workers}
    while by_fd:
        ready, _, _ = select.select(list(by_fd), [], [], 1.0)
        for fd in ready:
            worker = by_fd[fd]
            data = os.read(fd, 1 << 16)
            if data:
                _hear(worker, data)
                continue
            del by_fd[fd]
            code = worker.process.wait()
            if worker.result is None:
                raise LaunchError(_death(worker, code))
        on_progress(
            sum(one.num_rows for one in workers), sum(one.num_bytes for one in workers) // len(workers)
        )


def _death(worker: _Worker, code: int) -> str:
    hint = (
        " Use fewer of them (data.preprocessing_num_workers), or ask the job for more memory."
        if code == -signal.SIGKILL
        else ""
    )
    return f"a process that prepares data (number {worker.index}) was {describe_exit(code)}.{hint}"


def _stdout(worker: _Worker) -> IO[bytes]:
    assert worker.process.stdout is not None, "asked for in _start"
    return worker.process.stdout


def _hear(worker: _Worker, data: bytes) -> None:
    *lines, worker.pending = (worker.pending + data).split(b"\n")
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "problem" in said:
            worker.result = Problem(**said["problem"])
        elif "tally" in said:
            worker.result = Tally.from_fields(said["tally"])
        else:
            worker.num_rows, worker.num_bytes = said["rows"], said["bytes"]
