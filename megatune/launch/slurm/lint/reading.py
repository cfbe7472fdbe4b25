"""Rules on how sbatch and bash read the file: most of what goes wrong here goes wrong without a word."""

import re
from collections.abc import Iterator

from megatune.launch.slurm.lint.finding import Hit, LintFacts, Rule
from megatune.launch.slurm.lint.parse import BatchScript
from megatune.launch.slurm.options import SBATCH_OPTIONS, nearest_option

_NEARLY = re.compile(r"\s*#+\s*SBATCH\s|\s+#SBATCH\s|#SBATCH-", re.IGNORECASE)


def _no_shebang(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    if not script.lines or not script.lines[0].startswith("#!"):
        yield Hit(
            line=1, message="The first line does not say which shell reads the script; sbatch refuses it."
        )


def _carriage_returns(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    number = next((number for number, line in enumerate(script.lines, start=1) if line.endswith("\r")), None)
    if number is not None:
        yield Hit(line=number, message="The lines end as on Windows; sbatch refuses such a script.")


def _unexpanded(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for option in script.options:
        if "$" in option.value or "`" in option.value:
            yield Hit(
                line=option.line,
                message=f"--{option.name} is {option.value!r}: sbatch reads #SBATCH lines before any shell does and "
                "expands nothing in them.",
            )


def _after_command(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    first = script.commands[0].line if script.commands else 0
    for line in dict.fromkeys(option.line for option in script.options if not option.is_read):
        yield Hit(line=line, message=f"sbatch stops reading options at the first command (line {first}).")


def _nearly_an_option(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for number, line in enumerate(script.lines, start=1):
        if _NEARLY.match(line) and not line.startswith("#SBATCH ") and not line.startswith("##"):
            yield Hit(line=number, message=f"{line.strip()[:40]!r} is a comment to sbatch.")


def _unknown(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    for option in script.options:
        if option.name in SBATCH_OPTIONS:
            continue
        shown = f"--{option.name}" if option.name else repr(option.value)
        near = nearest_option(option.name) if option.name else None
        yield Hit(
            line=option.line,
            message=f"{shown} is no option of sbatch." + (f" Did you mean --{near}?" if near else ""),
        )


def _given_twice(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    seen: dict[str, tuple[int, str]] = {}
    for option in script.options:
        line, value = seen.get(option.name, (0, option.value))
        if value != option.value and option.name:  # what is no option is told by another rule
            yield Hit(
                line=option.line,
                message=f"--{option.name} is {option.value} here and {value} in line {line}; the last one counts.",
            )
        seen[option.name] = (option.line, option.value)


def _early_rank(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    """Variables that differ between tasks, in a command line that the batch shell expands once for all."""
    pattern = re.compile(r"\$\{?(SLURM_PROCID|SLURM_LOCALID)\b")
    for command in script.calls("srun"):
        text = re.sub(r"'[^']*'", "", command.text)
        found = pattern.search(text)
        if found and f"\\${found[1]}" not in text:
            yield Hit(
                line=command.line,
                message=f"${found[1]} is expanded by the batch shell, once, before srun starts: every task gets the "
                "same value, and the ranks wait for each other for ever.",
            )


READING_RULES = (
    Rule(name="no-shell", severity="error", check=_no_shebang, fix="Begin the file with #!/bin/bash."),
    Rule(name="windows-lines", severity="error", check=_carriage_returns, fix="Run dos2unix on the file."),
    Rule(
        name="unexpanded-variable",
        severity="error",
        check=_unexpanded,
        fix="Write the value itself, or give the option on sbatch's command line.",
    ),
    Rule(
        name="option-after-command",
        severity="error",
        check=_after_command,
        fix="Move all #SBATCH lines to the top of the file.",
    ),
    Rule(
        name="nearly-an-option",
        severity="warning",
        check=_nearly_an_option,
        fix="Write `#SBATCH --option=value` from the first column, or `##` before what is to stay a comment.",
    ),
    Rule(name="unknown-option", severity="error", check=_unknown, fix="See `man sbatch`."),
    Rule(name="given-twice", severity="warning", check=_given_twice, fix="Keep one."),
    Rule(
        name="expanded-too-early",
        severity="error",
        check=_early_rank,
        fix="Let the tasks expand it: srun bash -c '... $SLURM_PROCID ...' in single quotes. megatune needs no "
        "such variable: it reads Slurm's own.",
    ),
)
