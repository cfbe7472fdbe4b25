"""Rules on how a job ends: time limits, signals, queueing again, and the exit code that others see."""

import re
from collections.abc import Iterator

from megatune.launch.slurm.lint.finding import Hit, LintFacts, Rule
from megatune.launch.slurm.lint.parse import BatchScript, Command, Option, without_strings
from megatune.launch.slurm.quantities import parse_limit_s
from megatune.units import format_duration

_SIGNAL = re.compile(r"(?:[BR]{1,2}:)?(?:SIG)?([A-Z0-9]+)(?:@(\d+))?", re.ASCII | re.IGNORECASE)
_PIPED = re.compile(r"(?:time\s+)?(?:srun|torchrun|mpirun)\s(?:[^|]|\|\|)*\|(?!\|)")
_WRITES_ID = re.compile(r"%[0-9]*[jJAa]")


def _user_signal(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("signal")
    if option and _name_of(option) in ("USR1", "10"):
        yield Hit(
            line=option.line, message="USR1 is taken by some NCCL versions, and torchrun does not pass it on."
        )


def _no_trap(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("signal")
    if option and option.value.upper().startswith(("B:", "BR:", "RB:")) and not _traps(script):
        yield Hit(
            line=option.line,
            message=f"--signal={option.value} goes to the batch shell alone, and no trap catches it: "
            "it ends the script, and nothing is saved.",
        )


def _deaf_trap(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    last = next(
        reversed([call for call in script.calls("srun") if not call.text.rstrip().endswith("&")]), None
    )
    waits = [command for command in script.commands if re.search(r"\bwait\b", command.text)]
    if _traps(script) and last and not waits:
        yield Hit(
            line=last.line,
            message="bash runs a trap only when the command in the foreground has ended: after the time limit.",
        )


def _short_grace(script: BatchScript, facts: LintFacts) -> Iterator[Hit]:
    option = script.option("signal")
    found = _SIGNAL.fullmatch(option.value) if option else None
    grace = facts.grace_s if facts.grace_s is not None else float(found[2] or 60) if found else None
    if facts.save_seconds is not None and grace is not None:
        needed = facts.save_seconds + 2 * (facts.step_seconds or 0)
        wanted = int(needed * 2) + 1
        if grace < needed:
            yield Hit(
                line=option.line if option else None,
                message=f"The run is warned {grace:g} s before the end; a step and a save take {needed:.0f} s.",
                fix=f"Warn it earlier: slurm.signal_delay_s={wanted}, or --signal=B:USR2@{wanted}.",
            )


def _no_time(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    if script.option("time") is None and script.commands:
        yield Hit(
            line=None,
            message="No --time: the partition's default may be an hour, or its maximum, which queues last.",
        )


def _time_against_run(script: BatchScript, facts: LintFacts) -> Iterator[Hit]:
    option = script.option("time")
    limit = parse_limit_s(option.value) if option else None
    goes_on = script.option("requeue") is not None or script.option("dependency") is not None
    if option and limit and facts.eta_s is not None and facts.eta_s > limit:
        source = f" ({facts.eta_source})" if facts.eta_source else ""
        yield Hit(
            line=option.line,
            message=f"The limit is {format_duration(limit)}, the run needs about {format_duration(facts.eta_s)}{source}"
            + (": it will be queued again." if goes_on else ", and nothing queues it again."),
            fix="--chain auto submits as many jobs as it needs." if goes_on else None,
        )


def _requeue_without_saves(script: BatchScript, facts: LintFacts) -> Iterator[Hit]:
    option = script.option("requeue")
    if option is None or facts.has_checkpoints is None:
        return
    if not facts.has_checkpoints and script.option("signal") is None:
        yield Hit(line=option.line, message="The job is queued again, but the run saves nothing on its way.")
    elif not facts.has_checkpoints:
        yield Hit(
            line=option.line,
            message="The run saves only when it is warned: a node that fails takes all work since the start with it.",
        )
    elif (
        facts.save_steps
        and facts.step_seconds
        and script.option("signal") is None
        and facts.grace_s is not None
    ):
        interval = facts.save_steps * facts.step_seconds
        if interval > facts.grace_s:
            yield Hit(
                line=option.line,
                message=f"Saves lie {format_duration(interval)} apart, and nothing warns the run before it is ended.",
            )


def _never_again(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("no-requeue")
    commands = [command for command in script.commands if "scontrol requeue" in command.text]
    if option and commands:
        yield Hit(
            line=option.line, message=f"--no-requeue, but line {commands[0].line} queues the job again."
        )


def _log_of_its_own(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("output")
    if option and not _WRITES_ID.search(option.value) and option.value != "/dev/null":
        yield Hit(
            line=option.line,
            message=f"--output={option.value} is the same file for every job: they overwrite it.",
        )


def _log_kept(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    requeue, mode = script.option("requeue"), script.option("open-mode")
    if requeue and (mode is None or mode.value != "append"):
        yield Hit(
            line=requeue.line, message="A job that is queued again writes its log anew: why it ended is lost."
        )


def _lost_exit_code(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    careful = any(re.search(r"^set\s+-\w*e", command.text) for command in script.commands)
    sees_pipes = any(
        "pipefail" in command.text or "PIPESTATUS" in command.text for command in script.commands
    )
    for command in script.calls("srun", "torchrun", "mpirun"):
        if _PIPED.match(re.sub(r'"[^"]*"', "", without_strings(command.text))) and not sees_pipes:
            yield Hit(
                line=command.line,
                message="The exit code of a pipe is that of its last program: a failed run leaves the job COMPLETED.",
                fix="set -o pipefail",
            )
            continue
        if careful or _is_judged(script, command):
            continue
        yield Hit(
            line=command.line,
            message="Nothing looks at how this ends, and the script goes on: a failed run leaves the job COMPLETED.",
        )


def _is_judged(script: BatchScript, command: Command) -> bool:
    text = command.text
    if command is script.commands[-1] or re.search(r"\|\||&&|^\s*(if|while|until|exec)\b|!\s", text):
        return True
    if text.rstrip().endswith("&"):
        return any(re.search(r"\bwait\b", other.text) for other in script.commands)
    after = script.commands[script.commands.index(command) + 1]
    return "$?" in after.text or "$?" in text or after.text in ("fi", "}", "done")


def _traps(script: BatchScript) -> list[Command]:
    return [command for command in script.commands if re.search(r"(^|[\s;])trap\s", command.text)]


def _name_of(option: Option) -> str:
    found = _SIGNAL.fullmatch(option.value)
    return found[1].upper() if found else ""


ENDING_RULES = (
    Rule(name="usr1", severity="warning", check=_user_signal, fix="Use USR2, which megatune listens to."),
    Rule(
        name="signal-without-trap",
        severity="error",
        check=_no_trap,
        fix="Catch it and pass it on (trap 'kill -USR2 $pid' USR2), or leave out `B:` so that the ranks get it.",
    ),
    Rule(
        name="deaf-trap",
        severity="error",
        check=_deaf_trap,
        fix="Start srun in the background and wait: srun ... & pid=$!; wait $pid.",
    ),
    Rule(name="short-grace", severity="error", check=_short_grace, fix="Warn the run earlier."),
    Rule(name="no-time", severity="warning", check=_no_time, fix="Give --time: shorter jobs start sooner."),
    Rule(
        name="time-and-run",
        severity="warning",
        check=_time_against_run,
        fix="Ask for more time, or let the job be queued again: #SBATCH --requeue with a signal.",
    ),
    Rule(
        name="requeue-without-saves",
        severity="warning",
        check=_requeue_without_saves,
        fix="Give checkpoint.save_steps, and a --signal before the end.",
    ),
    Rule(name="no-requeue", severity="error", check=_never_again, fix="Take out one of the two."),
    Rule(
        name="log-of-its-own",
        severity="warning",
        check=_log_of_its_own,
        fix="Put %j into it (arrays: %A_%a).",
    ),
    Rule(name="log-kept", severity="warning", check=_log_kept, fix="Add #SBATCH --open-mode=append."),
    Rule(
        name="lost-exit-code",
        severity="warning",
        check=_lost_exit_code,
        fix="Begin with `set -e`, or exit with its code.",
    ),
)
