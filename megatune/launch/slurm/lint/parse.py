"""A batch script taken apart: its #SBATCH options with their lines, and its commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from megatune.launch.slurm.options import SBATCH_FLAGS, SHORT_OPTIONS

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)  # Python refuses to convert very long ones


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an #SBATCH line. `name` is its long name, without dashes."""

    line: int
    name: str
    value: str
    is_read: bool
    """False when a command stands before it: sbatch stops reading there."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the script, continued lines joined. `line` is its first."""

    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class BatchScript:
    """A script as sbatch and bash will read it."""

    lines: tuple[str, ...]
    options: tuple[Option, ...]
    commands: tuple[Command, ...]

    def option(self, *names: str) -> Option | None:
        """The last option of one of these names that sbatch reads: the one that counts."""
        found = [option for option in self.options if option.is_read and option.name in names]
        return found[-1] if found else None

    def number(self, *names: str) -> int | None:
        """Its value as a whole number; None where it is not there or is no plain number."""
        option = self.option(*names)
        return int(option.value) if option and _NUMBER.fullmatch(option.value) else None

    def calls(self, *programs: str) -> list[Command]:
        """The commands that start one of these programs, by themselves or through others (srun, exec)."""
        words = "|".join(map(re.escape, programs))
        pattern = re.compile(rf"(?:^|[\s;&|(]|/)(?:{words})(?=\s|$|;|&)")
        return [
            command
            for command in self.commands
            if pattern.search(without_strings(command.text)) and not _SPEAKS.match(command.text)
        ]

    def sets(self, variable: str) -> Command | None:
        """The command that gives `variable` a value."""
        pattern = re.compile(rf"(?:^|[\s;]){re.escape(variable)}=")
        return next((command for command in self.commands if pattern.search(command.text)), None)

    @property
    def nodes(self) -> int | None:
        """The number of nodes; 1 when nothing asks for more, None when it is a range or unknown."""
        return self.number("nodes") if self.option("nodes") else (None if self.option("ntasks") else 1)

    @property
    def gpus_per_node(self) -> int | None:
        """GPUs that are asked for on each node, however it is spelt; None where that cannot be told."""
        direct = self.option("gpus-per-node", "gres")
        if direct:
            parts = [
                part for part in direct.value.split(",") if direct.name != "gres" or part.startswith("gpu")
            ]
            last = parts[0].rpartition(":")[2].partition("(")[0] if parts else ""
            return int(last) if _NUMBER.fullmatch(last) else 1 if last == "gpu" else None
        total, nodes = self.number("gpus"), self.nodes
        return total // nodes if total is not None and nodes and total % nodes == 0 else None

    @property
    def tasks_per_node(self) -> int | None:
        """Tasks on each node; None where nothing says it."""
        direct = self.number("ntasks-per-node")
        if direct is not None:
            return direct
        total, nodes = self.number("ntasks"), self.nodes
        return total // nodes if total is not None and nodes and total % nodes == 0 else None


_SPEAKS = re.compile(r"(echo|printf)\s(?!.*\$\()")


def parse_script(text: str) -> BatchScript:
    """Take a script apart. Nothing in it is run, and nothing is refused: that is the rules' task."""
    lines = tuple(text.removesuffix("\n").split("\n"))  # a \r stays: sbatch stumbles over it, too
    commands = tuple(_commands(lines))
    first = commands[0].line if commands else len(lines) + 1
    options = [
        option for number, line in enumerate(lines, start=1) for option in _options(line, number, first)
    ]
    return BatchScript(lines=lines, options=tuple(options), commands=commands)


def without_strings(text: str) -> str:
    """`text` with what stands in single quotes taken out: the batch shell does not look into it."""
    return re.sub(r"'[^']*'", "''", text)


def _commands(lines: tuple[str, ...]) -> Iterator[Command]:
    parts: list[str] = []
    started, end_of_document = 0, ""
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if end_of_document:
            if stripped == end_of_document:
                end_of_document = ""
            continue
        if not parts and (not stripped or stripped.startswith("#")):
            continue
        started = started or number
        parts.append(stripped.removesuffix("\\"))
        if not stripped.endswith("\\"):
            text = " ".join(parts)
            document = re.search(r"<<-?\s*[\"']?(\w+)[\"']?", text)
            end_of_document = document[1] if document else ""
            yield Command(line=started, text=text)
            started, parts = 0, []
    if parts:
        yield Command(line=started, text=" ".join(parts))


def _options(line: str, number: int, first_command: int) -> Iterator[Option]:
    if not line.startswith("#SBATCH"):
        return
    words = _words(line.removeprefix("#SBATCH"))
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and name not in SBATCH_FLAGS and words and not words[0].startswith("-"):
                value = words.pop(0)
        elif word.startswith("-") and len(word) > 1:
            name, value = SHORT_OPTIONS.get(word[1], word[:2]), word[2:].removeprefix("=")
            if not value and name not in SBATCH_FLAGS and words and not words[0].startswith("-"):
                value = words.pop(0)
        else:
            name, value = "", word
        yield Option(line=number, name=name, value=value, is_read=number < first_command)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quote without its partner
        return text.split()
