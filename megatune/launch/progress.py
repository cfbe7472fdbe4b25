"""Whether a start of a run has saved anything new, and what follows: to start the ranks again, or not."""

import sys
from collections.abc import Callable
from pathlib import Path

from megatune.launch.checkpoints import MANIFEST, finished, step_of
from megatune.launch.processes import GOOD_ENDS
from megatune.launch.verdict import RanksResult

_USER_ERROR = 2


def run_with_restarts(
    run_once: Callable[[], RanksResult], *, max_restarts: int, checkpoints: Path, is_new_run: bool = False
) -> RanksResult:
    """What `run_once` gives, which is called again after a failure.

    At most `max_restarts` times, and only while each start saves a newer checkpoint than there was: a
    failure that comes back at once is not helped by another start. The user's mistakes, and what the
    user stopped, are not started again. is_new_run: the first start sets aside what there is.
    """
    for restarts in range(max_restarts):
        before = _saved(checkpoints)
        result = run_once()
        is_failure = result.hung or result.exit_code not in (*GOOD_ENDS, _USER_ERROR)
        if not is_failure or result.stop_asked:
            return result
        newest = max((step for step, _ in _saved(checkpoints) - before), default=-1)
        set_aside = is_new_run and restarts == 0
        if newest <= (-1 if set_aside else max((step for step, _ in before), default=-1)):
            _tell("not started again: nothing new was saved since the last start")
            return result
        if result.failure_text:
            _tell(result.failure_text)
        _tell(f"starting the ranks again after step {newest} (restart {restarts + 1} of {max_restarts})")
    return run_once()


def _saved(checkpoints: Path) -> set[tuple[int, int]]:
    """Step and time of writing of each checkpoint that was written to its end."""
    return {
        (step_of(folder) or 0, (folder / MANIFEST).stat().st_mtime_ns) for folder in finished(checkpoints)
    }


def _tell(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr, flush=True)
