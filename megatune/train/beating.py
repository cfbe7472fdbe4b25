"""The heart of one rank, and who watches it: the local launcher, or a thread of the rank itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from megatune.config import Run
from megatune.launch.hang_thread import HangThread
from megatune.launch.heartbeat import Heart
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.rank_info import RankInfo
from megatune.launch.run_folder import RunFolder
from megatune.launch.stacks import offer_stacks


@contextmanager
def beating(run: Run, rank: RankInfo, folder: RunFolder) -> Iterator[Heart]:
    """A heart while the block runs. Call it from the main thread."""
    with Heart(folder.heartbeats, rank.rank) as heart, ExitStack() as at_end:
        if rank.launcher == "local":
            at_end.callback(offer_stacks(folder.heartbeats, rank.rank))
        elif run.health.hang_timeout_s:
            watch = HangThread(
                folder,
                heart,
                rank=rank.rank,
                num_ranks=rank.world_size,
                limit_s=run.health.hang_timeout_s,
                # To our launcher over ssh 75 is a good end, and it would wait for the rank that hangs.
                code_when_saved=1 if rank.launcher == "ssh" else STOPPED_BUT_SAVED,
            )
            watch.start()
            at_end.callback(watch.stop)
        yield heart
