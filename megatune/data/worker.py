"""One worker of `crew`: `python -m megatune.data.worker INDEX COUNT`, the job on standard input.

It says how far it is on standard output, a JSON object a line, and its result in the last.
"""

import gc
import json
import os
import pickle
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import TextIO

from megatune.data.part import Share
from megatune.data.shared import Job, Problem, write_share
from megatune.data.space import writing_prepared
from megatune.data.tally import Tally

_SAY_EVERY_S = 0.3


class _Saying:
    """Sums up blocks and says so on `channel` now and then."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel
        self.num_rows = self.num_bytes = 0
        self._said = 0.0

    def __call__(self, num_rows: int, num_bytes: int) -> None:
        self.num_rows += num_rows
        self.num_bytes += num_bytes
        if time.monotonic() - self._said >= _SAY_EVERY_S:
            self.say()

    def say(self) -> None:
        """Say it now."""
        self._said = time.monotonic()
        self._tell({"rows": self.num_rows, "bytes": self.num_bytes})

    def say_last(self, result: Tally | Problem) -> None:
        """Say what has become of the share."""
        self._tell(
            {"problem": asdict(result)} if isinstance(result, Problem) else {"tally": result.as_fields()}
        )

    def _tell(self, said: dict[str, object]) -> None:
        print(json.dumps(said), file=self._channel, flush=True)


def _own_channel() -> TextIO:
    """Standard output, for this module alone: what others print from now on goes to standard error.

    A tokenizer's code may print whatever it likes, and the parent reads every line of the channel.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def main() -> None:
    """Do the share of the command line."""
    index, count = map(int, sys.argv[1:])
    saying = _Saying(_own_channel())
    job: Job = pickle.load(sys.stdin.buffer)  # from the process that started this one, and nobody else
    guard = partial(writing_prepared, job.scratch)
    gc.freeze()  # what is imported stays: a collection need not look through it each time
    result = write_share(job, Share(index=index, count=count), saying, guard)
    saying.say()
    saying.say_last(result)


if __name__ == "__main__":
    main()
