"""How ranks tell each other what they found, before and beside any process group: torch's TCPStore.

Every wait has an end and names who was waited for. Keys are polled: a blocking wait of the store
holds it against every other thread, and a store whose server is stopped never returns from it.
"""

import json
import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # where torch's own stubs have them
from torch.distributed import DistNetworkError

from megatune.errors import LaunchError
from megatune.launch.ports import PortTakenError
from megatune.launch.ranks import RankInfo

_FIRST_POLL_S = 0.0005
_LAST_POLL_S = 0.05
_CONNECT_S = 2.0


class Exchange:
    """Values by name over one store."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size

    def put(self, key: str, value: Any) -> None:
        """Make the JSON value `value` known to all ranks under `key`."""
        self.store.set(key, json.dumps(value))

    def wait_for(self, key: str, within_s: float) -> Any:
        """The value of `key`. Raises TimeoutError when nobody puts it within `within_s` seconds."""
        if self._wait([key], within_s):
            raise TimeoutError(f"nobody answered {key} within {within_s:.1f} s")
        return json.loads(self.store.get(key))

    def gather(self, name: str, ranks: Iterable[int], within_s: float) -> dict[int, Any]:
        """What each of `ranks` told under `name`; those that did not within the time are not in it."""
        keys = {f"{name}/{rank}": rank for rank in ranks}
        late = self._wait(list(keys), within_s)
        return {rank: json.loads(self.store.get(key)) for key, rank in keys.items() if key not in late}

    def tell(self, name: str, value: Any) -> None:
        """Give this rank's answer to a `gather` of `name`."""
        self.put(f"{name}/{self.rank}", value)

    def below(self, prefix: str) -> Store:
        """The store for somebody else's keys, which stay apart from ours."""
        return PrefixStore(prefix, self.store)

    def _wait(self, keys: list[str], within_s: float) -> set[str]:
        """The keys that are still missing after `within_s` seconds."""
        end = time.monotonic() + within_s
        pause_s = _FIRST_POLL_S
        missing = list(keys)
        while missing:
            missing = [key for key in missing if not self.store.check([key])]
            if not missing or time.monotonic() > end:
                break
            time.sleep(pause_s)
            pause_s = min(_LAST_POLL_S, pause_s * 1.3)
        return set(missing)


def open_exchange(rank: RankInfo, *, agent_prefix: str | None, within_s: float) -> Exchange:
    """Rank 0 opens the store on MASTER_PORT, or finds the one that torchrun holds there; the others join.

    `agent_prefix`: see `ranks.agent_store_prefix`. Raises PortTakenError, or LaunchError when rank 0 cannot
    be reached within `within_s` seconds.
    """
    serves = rank.rank == 0 and agent_prefix is None
    if not serves:
        _wait_until_listening(rank, within_s)
    try:
        store: Store = TCPStore(
            rank.master_addr,
            rank.master_port,
            is_master=serves,
            timeout=timedelta(seconds=within_s),
            wait_for_workers=False,
        )
    except DistNetworkError as error:
        if serves and "EADDRINUSE" in str(error):
            raise PortTakenError(
                f"port {rank.master_port} of {rank.master_addr} is taken: address already in use. "
                "Start again; megatune's own launchers choose another one."
            ) from error
        raise LaunchError(_unreachable(rank, within_s, str(error).splitlines()[0])) from error
    return Exchange(PrefixStore(f"megatune-doctor/{agent_prefix or ''}", store), rank.rank, rank.world_size)


def _wait_until_listening(rank: RankInfo, within_s: float) -> None:
    end = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((rank.master_addr, rank.master_port), timeout=_CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise LaunchError(_unreachable(rank, within_s, error.strerror or str(error))) from error
        time.sleep(0.1)


def _unreachable(rank: RankInfo, within_s: float, reason: str) -> str:
    return (
        f"missing after {within_s:.0f} s: rank 0 on {rank.master_addr}. Rank {rank.rank} on "
        f"{socket.gethostname()} cannot reach its port {rank.master_port}: {reason}. Either rank 0 has not "
        "started, or the name leads elsewhere, or a firewall stands between."
    )
