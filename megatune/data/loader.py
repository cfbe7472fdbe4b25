"""The rows of one step after another, assembled when they are asked for or ahead of it by threads.

What a step trains on is a pure function of its position, so rows assembled ahead have no state that a checkpoint
would have to keep: a run goes on with the same rows however many threads there were before.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from megatune.data.batches import Batch
from megatune.data.sampler import Position


class StepLoader:
    """Gives the micro-batches of a step; with `workers` threads, those of as many next steps are on their way."""

    def __init__(
        self,
        assemble: Callable[[Position], list[Batch]],
        *,
        after: Callable[[Position], Position],
        workers: int,
    ) -> None:
        """assemble: the rows of the step that begins at a position. after: where the next one begins."""
        self._assemble, self._after, self._workers = assemble, after, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="rows") if workers else None
        self._ahead: deque[tuple[Position, Future[list[Batch]]]] = deque()

    def take(self, position: Position) -> list[Batch]:
        """The rows of the step at `position`. Raises what assembling them raised."""
        if self._threads is None:
            return self._assemble(position)
        # After a resume or a rollback the run is elsewhere: what was assembled for another place is not wanted.
        while self._ahead and self._ahead[0][0] != position:
            self._ahead.popleft()[1].cancel()
        rows = self._ahead.popleft()[1] if self._ahead else self._threads.submit(self._assemble, position)
        self._fill(position)
        return rows.result()

    def close(self) -> None:
        """End the threads. No row can be taken afterwards."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _fill(self, position: Position) -> None:
        assert self._threads is not None
        last = self._ahead[-1][0] if self._ahead else position
        while len(self._ahead) < self._workers:
            last = self._after(last)
            self._ahead.append((last, self._threads.submit(self._assemble, last)))
