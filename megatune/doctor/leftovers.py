"""What an earlier start left behind, and what Slurm says about this one."""

import threading
import time
from pathlib import Path

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, not_available
from megatune.errors import SubmitError
from megatune.launch import ranks
from megatune.launch.build_leftovers import find_stale_locks
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.quantities import parse_left_s
from megatune.units import format_duration

_SLURM_TIMEOUT_S = 10.0
_SHORT_S = 600.0


def measure_build_locks(place: Place) -> Json:
    """torch's lock files in the folders of compiled ops that no process of this node holds."""
    if not place.is_first_of_node:
        return {}
    now = time.time()
    locks = {lock: lock.stat().st_mtime for folder in _build_folders() for lock in find_stale_locks(folder)}
    return {"locks": {str(lock): round(now - made, 1) for lock, made in locks.items()}}


def _build_folders() -> list[Path]:
    """Folders whose direct subfolders are builds: ours, torch's own, and the one of TORCH_EXTENSIONS_DIR."""
    own = ranks.extension_folder_override()
    bases = [ranks.cache_folder() / "torch_extensions", Path.home() / ".cache" / "torch_extensions"]
    bases += [own] if own else []
    found = [folder for base in dict.fromkeys(bases) if base.is_dir() for folder in (base, *base.iterdir())]
    return [folder for folder in found if folder.is_dir()]


def judge_build_locks(answers: Answers, group: Group) -> Finding:
    """A lock that no process holds makes torch wait for ever at the next start."""
    locks: dict[str, list[str]] = {}
    for rank in sorted(answers):
        for lock in answers[rank].get("locks", {}):
            locks.setdefault(lock, []).append(group.nodes[rank])
    # A process of another node may hold a lock on a shared file system: stale only if no node holds it.
    looking = [facts["locks"] for facts in answers.values() if "locks" in facts]
    problems = [
        Problem(
            verdict="warn",
            text=f"{lock} is held by no process ({', '.join(nodes[:3])}); torch would wait for it for ever",
            fix=f"If no other job builds there now: rm {lock}",
        )
        for lock, nodes in locks.items()
        if all(lock in seen for seen in looking)
    ]
    return conclude(problems, good="no build lock is left behind", measured={"locks": sorted(locks)})


def measure_slurm(place: Place, call: Call = call) -> Json:
    """Whether scontrol answers on rank 0's host, and the seconds until the job's time limit."""
    job = place.surroundings.get("SLURM_JOB_ID")
    if job is None or place.rank.rank != 0:
        return {}
    answers: list[Json] = []
    # A controller that is down keeps its programs waiting for a minute; the ladder has not that long.
    asking = threading.Thread(target=lambda: answers.append(ask_slurm(job, call)), daemon=True)
    asking.start()
    asking.join(min(_SLURM_TIMEOUT_S, place.left_s()))
    silence = f"no answer within {_SLURM_TIMEOUT_S:.0f} s"
    return answers[0] if answers else {"job": job, "error": silence, "left_s": None}


def ask_slurm(job: str, call: Call = call) -> Json:
    """The answers of scontrol and squeue about `job`."""
    try:
        shown = call(["scontrol", "show", "job", job])
        left = call(["squeue", "--noheader", "--jobs", job, "--format", "%L"])
    except SubmitError as error:
        return {"job": job, "error": str(error), "left_s": None}
    wrong = next((answer for answer in (shown, left) if answer.code != 0), None)
    return {
        "job": job,
        "error": None if wrong is None else (wrong.err.strip() or f"exit code {wrong.code}"),
        "left_s": parse_left_s(left.out.strip()) if left.code == 0 else None,
    }


def judge_slurm(answers: Answers, _group: Group) -> Finding:
    """A job that cannot reach scontrol cannot queue itself again; one about to end will not train."""
    facts = answers.get(0) or {}
    if "job" not in facts:
        return not_available("not inside a Slurm job")
    problems: list[Problem] = []
    if facts["error"]:
        problems.append(
            Problem(
                verdict="warn",
                text=f"scontrol does not answer on rank 0's host: {facts['error']}",
                fix="Without it the job cannot queue itself again at its time limit; inside a container, "
                "mount Slurm's programs and /etc/slurm, or set slurm.requeue=false.",
            )
        )
    left_s = facts["left_s"]
    if left_s is not None and left_s < _SHORT_S:
        problems.append(
            Problem(
                verdict="warn",
                text=f"the job ends in {format_duration(left_s)}",
                fix="Ask for a longer slurm.time.",
            )
        )
    ends = f"{format_duration(left_s)} left" if left_s is not None else "no time limit known"
    return conclude(problems, good=f"scontrol answers; {ends}", measured=facts)
