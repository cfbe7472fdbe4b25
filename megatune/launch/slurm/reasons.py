"""Why a job waits: Slurm's reason codes in words, each with what can be done.

Codes: `man squeue`, JOB REASON CODES, and https://slurm.schedmd.com/job_reason_codes.html.
"""

import re

_REASONS: tuple[tuple[str, str], ...] = (
    (r"None|WaitingForScheduling", "the scheduler has not looked at it yet"),
    (r"Priority", "jobs of higher priority are before it: it moves up by itself"),
    (r"Resources", "it is next, and waits until enough nodes are free"),
    (r"Dependency", "it waits for the job before it in its chain to end"),
    (
        r"DependencyNeverSatisfied",
        "the job it depends on ended in another way than asked for, so it will never start: cancel it and "
        "submit again",
    ),
    (r"BeginTime", "its start time has not come; after being queued again, Slurm holds a job for some minutes"),
    (r"Cleaning|Prolog", "its nodes are being made ready after or for a start"),
    (r"JobHeldUser", "you hold it: `scontrol release JOB` lets it go"),
    (r"JobHeldAdmin", "an administrator holds it: ask them"),
    (r"JobHoldMaxRequeue", "it was queued again too often and is held: `scontrol release JOB` lets it go"),
    (
        r"ReqNodeNotAvail",
        "nodes it needs are down, drained or reserved; if a maintenance is coming, a shorter slurm.time may fit "
        "before it (`scontrol show reservation`, `sinfo -R`)",
    ),
    (r"NodeDown|Nodes_required_for_job_are_DOWN", "a node it needs is down: change slurm.nodelist, or wait"),
    (r"Reservation", "its reservation has not begun"),
    (r"ReservationDeleted|ReservationInvalid", "its reservation is gone: take slurm.reservation out and submit again"),
    (
        r"PartitionTimeLimit",
        "slurm.time is longer than the partition allows, so it will not start: lower slurm.time (`sinfo -o '%P %l'` "
        "shows the limits)",
    ),
    (
        r"PartitionNodeLimit|PartitionConfig",
        "it asks for more nodes than the partition gives to one job, or for some that are down: lower slurm.nodes",
    ),
    (r"PartitionDown|PartitionInactive", "the partition does not start jobs at present: choose another, or wait"),
    (r"AccountNotAllowed|InvalidAccount", "the partition does not take this account: change slurm.account"),
    (r"QOSNotAllowed|InvalidQOS", "the partition or account does not take this QOS: change slurm.qos"),
    (r"BadConstraints", "no node has what slurm.constraint asks for: `sinfo -o '%N %f'` shows the features"),
    (r"Licenses", "a licence it asks for is in use"),
    (r"JobArrayTaskLimit", "as many tasks of its array run as slurm.array_parallelism allows"),
    (r"MaxMemPerLimit", "it asks for more memory per core than the partition gives: lower slurm.mem"),
    (r"QOSUsageThreshold", "the QOS asks for a better fair share than you have at present"),
    (r"QOSMaxJobsPerUserLimit|QOSJobLimit|AssociationJobLimit", "you run as many jobs as your limits allow"),
    (r"(QOS|Assoc)Max\w*(Wall|Time)\w*|QOSTimeLimit", "slurm.time is longer than your limits allow: lower it"),
    (
        r"(QOS|Assoc)Max\w*Per(User|Account)\w*",
        "your running jobs hold as much as your limits allow: it starts when one ends",
    ),
    (
        r"(QOS|Assoc)(Max|Min)\w*",
        "one job may not ask for this much (or this little): change slurm.nodes, gpus or mem (`sacctmgr show qos` "
        "and `sacctmgr show assoc` list the limits)",
    ),
    (
        r"(QOS|Assoc)Grp\w*(Minutes|RunMinutes)\w*",
        "the granted compute time of the account or QOS is used up or reserved by running jobs",
    ),
    (r"(QOS|Assoc)Grp\w*", "all jobs of the account or QOS together hold as much as they may: it starts when some end"),
    (r"(QOS|Association)\w*Limit", "a limit of the account or QOS is reached"),
    (r"FedJobLock|Federation\w*", "clusters of the federation decide which of them runs it"),
    (r"JobLaunchFailure|RaisedSignal\S*|NonZeroExitCode|SystemFailure|launch_failed_requeued_held",
     "its last start failed"),
    (r"NodeFailure?|TimeLimit|InactiveLimit", "its last start was cut short"),
    (r"OutOfMemory", "it used more memory than it had asked for"),
    (r"Preempt\w*", "it makes room for a job of higher priority"),
    (r"BurstBuffer\w*", "its burst buffer is not ready"),
    (r"DeadLine|Deadline", "its deadline cannot be met"),
)  # fmt: skip


def reason_in_words(reason: str | None) -> str | None:
    """What a reason code of squeue means; None when there is none to give.

    >>> reason_in_words("Priority")
    'jobs of higher priority are before it: it moves up by itself'

    What follows a comma in a reason (`ReqNodeNotAvail, UnavailableNodes:n[1-2]`) is kept as Slurm says it.
    """
    if not reason or reason == "None":
        return None
    code, _, rest = reason.strip("()").partition(",")
    for pattern, words in _REASONS:
        if re.fullmatch(pattern, code.strip()):
            return f"{words} ({rest.strip()})" if rest.strip() else words
    return f"Slurm gives the reason {reason!r}"
