"""The ladder as the ranks climb it: rank 0 says what comes next, all measure, rank 0 judges."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.distributed import DistError

from megatune.doctor.place import Place
from megatune.doctor.presence import Seat, judge_presence, missing_nodes, name_missing, unanswered
from megatune.doctor.rungs import RENDEZVOUS, Rung, ladder
from megatune.doctor.verdict import (
    Answers,
    Finding,
    Group,
    Problem,
    RungResult,
    add_problems,
    not_available,
)
from megatune.doctor.watchdog import Watchdog
from megatune.errors import LaunchError, MegatuneError

_GRACE_S = 2.0  # for ranks to tell that they have waited in vain
_RESERVE_S = 1.0  # for the report
_LEAST_S = 0.5
_LAST = "end"
_EXPECTED = (OSError, RuntimeError, MegatuneError)  # torch's own errors are RuntimeErrors

Tell = Callable[[RungResult], None]


class FirstRank:
    """Rank 0: leads the climb and keeps the results."""

    def __init__(
        self, place: Place, watchdog: Watchdog, *, promised: Sequence[str] | None, tell: Tell
    ) -> None:
        self.results: list[RungResult] = []
        self.answers: dict[str, Answers] = {}
        self.group = Group(world_size=place.rank.world_size, nodes={})
        self.missing: dict[int, str | None] = {}
        self._place = place
        self._watchdog = watchdog
        self._promised = promised
        self._tell = tell
        self._is_broken = False
        self._number = 0
        self._now = RENDEZVOUS

    def climb(self, meet_s: float, seconds: float, known: Mapping[str, Answers]) -> None:
        """All rungs.

        `meet_s`: how long to wait for the ranks; `seconds`: what this rank needed to get here; `known`:
        what all ranks have measured before, by rung.
        """
        self._watchdog.say_at_end(self._give_up)
        self._meet(meet_s, seconds)
        for rung in ladder(self._place.setting):
            if rung.name in known:
                self._keep(rung.name, 0.0, rung.judge(known[rung.name], self.group))
            else:
                self._take(rung)

    def end(self, code: int) -> None:
        """Give all ranks the exit code, and let them read it before the store is gone."""
        self._place.exchange.put(f"order/{self._number}", {"rung": _LAST, "code": code})
        others = [rank for rank in self.group.nodes if rank != 0]
        self._place.exchange.gather("bye", others, min(_RESERVE_S, max(0.0, self._watchdog.left_s())))

    @property
    def is_whole(self) -> bool:
        """Whether every rank has answered everything, so that a collective can be entered and left."""
        return not self.missing and not self._is_broken

    def _meet(self, within_s: float, seconds: float) -> None:
        place, begun = self._place, time.monotonic()
        world = range(place.rank.world_size)
        place.exchange.tell("seat", seat_of(place, seconds))
        seats = place.exchange.gather("seat", world, within_s)
        self.group = Group(
            world_size=len(world), nodes={rank: seat["node"] for rank, seat in sorted(seats.items())}
        )
        place.nodes = dict(self.group.nodes)
        place.exchange.put("nodes", {str(rank): node for rank, node in self.group.nodes.items()})
        known = {
            rank: Seat(
                node=seat["node"],
                local_rank=seat["local_rank"],
                local_world_size=seat["local_world_size"],
            )
            for rank, seat in seats.items()
        }
        self.missing = missing_nodes(known, len(world), self._promised)
        finding = judge_presence(
            self.group,
            self.missing,
            waited_s=within_s,
            asked_nodes=place.setting.asked_nodes,
            seconds={rank: seat["seconds"] for rank, seat in seats.items()},
        )
        self._keep(RENDEZVOUS, time.monotonic() - begun + seconds, finding)

    def _take(self, rung: Rung) -> None:
        if rung.needs_all and not self.is_whole:
            reason = f"{name_missing(self.missing)} missing" if self.missing else "an earlier rung failed"
            self._keep(rung.name, 0.0, not_available(f"not measured: {reason}"))
            return
        within_s = min(rung.limit_s, self._watchdog.left_s() - _RESERVE_S - _GRACE_S)
        if within_s < _LEAST_S:
            self._keep(rung.name, 0.0, not_available("not measured: no time left (--limit)"))
            return
        self._now, begun = rung.name, time.monotonic()
        self._place.exchange.put(f"order/{self._number}", {"rung": rung.name, "within_s": within_s})
        self._number += 1
        answers = self._measure(rung, within_s)
        finding = self._judge(rung, answers, within_s)
        self._keep(rung.name, time.monotonic() - begun, finding)

    def _measure(self, rung: Rung, within_s: float) -> dict[int, Any]:
        place = self._place
        present = [rank for rank in self.group.nodes if rank not in self.missing]
        place.rung_ends_at = time.monotonic() + within_s
        own = attempt(rung, place)
        wait_s = place.rung_ends_at - time.monotonic() + _GRACE_S
        place.exchange.tell(rung.name, own)
        return place.exchange.gather(rung.name, present, wait_s)

    def _judge(self, rung: Rung, answers: dict[int, Any], within_s: float) -> Finding:
        silent = {
            rank: node
            for rank, node in self.group.nodes.items()
            if rank not in answers and rank not in self.missing
        }
        errors = {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
        facts = {rank: answer["facts"] for rank, answer in sorted(answers.items()) if "facts" in answer}
        self.answers[rung.name] = facts
        problems = [unanswered(silent, rung.name, within_s)] if silent else []
        # Where a rank is silent, the errors of the others are only that they waited for it.
        if not (silent and rung.needs_all):
            problems += self._own_words(errors)
        self.missing |= silent
        self._is_broken = self._is_broken or (rung.needs_all and bool(errors))
        finding = rung.judge(facts, self.group) if facts else not_available("no rank could measure it")
        return add_problems(finding, problems)

    def _own_words(self, errors: dict[int, str]) -> list[Problem]:
        by_words: dict[str, list[int]] = {}
        for rank, words in errors.items():
            by_words.setdefault(words, []).append(rank)
        return [
            Problem(
                verdict="fail",
                text=f"{self.group.name(ranks[0])}"
                + (f" and {len(ranks) - 1} more" if len(ranks) > 1 else "")
                + f": {words}",
                fix="",
            )
            for words, ranks in by_words.items()
        ]

    def _keep(self, name: str, seconds: float, finding: Finding) -> None:
        result = RungResult(name=name, seconds=seconds, finding=finding)
        self.results.append(result)
        self._tell(result)

    def _give_up(self) -> None:
        """Last words of the watchdog: this rank itself hangs in a rung."""
        words = f"{self.group.name(0)} itself hangs in this rung"
        problem = Problem(verdict="fail", text=words, fix="Its stack is on standard error.")
        self._keep(self._now, 0.0, add_problems(not_available(""), [problem]))


def follow(place: Place, watchdog: Watchdog, *, seconds: float) -> int:
    """Every other rank: do what rank 0 says until it says the exit code.

    Raises LaunchError when rank 0 ends before that.
    """
    now = [RENDEZVOUS]
    rungs = {rung.name: rung for rung in ladder(place.setting)}
    watchdog.say_at_end(lambda: print(_hangs(place, now[0]), file=sys.stderr))
    try:
        place.exchange.tell("seat", seat_of(place, seconds))
        nodes = place.exchange.wait_for("nodes", watchdog.left_s())
        place.nodes = {int(rank): node for rank, node in nodes.items()}
        number = 0
        while True:
            order = place.exchange.wait_for(f"order/{number}", watchdog.left_s())
            number += 1
            if order["rung"] == _LAST:
                place.exchange.tell("bye", True)
                return int(order["code"])
            now[0] = order["rung"]
            place.rung_ends_at = time.monotonic() + order["within_s"]
            place.exchange.tell(order["rung"], attempt(rungs[order["rung"]], place))
    except (DistError, TimeoutError) as error:
        words = str(error).splitlines()[0]
        raise LaunchError(
            f"rank 0 on {place.rank.master_addr} has ended or hangs, after {now[0]}: {words}"
        ) from error


def seat_of(place: Place, seconds: float) -> dict[str, Any]:
    """What a rank says about itself first."""
    return {
        "node": place.node,
        "local_rank": place.rank.local_rank,
        "local_world_size": place.rank.local_world_size,
        "seconds": round(seconds, 3),
    }


def attempt(rung: Rung, place: Place) -> dict[str, Any]:
    """What this rank measured, or in words why it could not: the others must hear of it."""
    try:
        return {"facts": rung.measure(place)}
    except Exception as error:
        if not isinstance(error, _EXPECTED):
            traceback.print_exc()  # a mistake of ours: the words alone would not find it
        words = str(error).strip().splitlines() or ["no reason given"]
        return {"error": f"{type(error).__name__}: {words[0]}"}


def _hangs(place: Place, rung: str) -> str:
    return f"megatune: rank {place.rank.rank} on {place.node} waited in rung {rung} until the doctor's time was over"
