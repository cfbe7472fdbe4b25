"""One worker of `crew`: `python -m megatune.data.worker INDEX COUNT`, the job on standard input.

It says how far it is on standard output, a JSON object a line, and its result in the last.
"""

import gc
import json
import pickle
import sys
import time
from dataclasses import asdict
from functools import partial

from megatune.data.part import Share
from megatune.data.shared import Job, Problem, write_share
from megatune.data.space import writing_prepared

_SAY_EVERY_S = 0.3


class _Saying:
    """Sums up blocks and says so now and then."""

    def __init__(self) -> None:
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
        _say({"rows": self.num_rows, "bytes": self.num_bytes})


def _say(said: dict[str, object]) -> None:
    print(json.dumps(said), flush=True)


def main() -> None:
    """Do the share of the command line."""
    index, count = map(int, sys.argv[1:])
    job: Job = pickle.load(sys.stdin.buffer)  # from the process that started this one, and nobody else
    saying = _Saying()
    guard = partial(writing_prepared, job.scratch)
    gc.freeze()  # what is imported stays: a collection need not look through it each time
    result = write_share(job, Share(index=index, count=count), saying, guard)
    saying.say()
    _say({"problem": asdict(result)} if isinstance(result, Problem) else {"tally": result.as_fields()})


if __name__ == "__main__":
    main()
