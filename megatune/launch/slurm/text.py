"""What a job script may hold: the shape of each value, and how it is quoted.

A value that sbatch or bash could read as anything but itself is refused here, whatever file it came from.
Validators raise ValueError with the clause that follows "it must be", as those of `config.fields` do.
"""

import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from megatune.config.fields import one_line

_NAMES = re.compile(r"[A-Za-z0-9][\w.@+-]*(,[A-Za-z0-9][\w.@+-]*)*", re.ASCII)
_CONSTRAINT = re.compile(r"[\w.+:*&|,()\[\]-]+", re.ASCII)
_HOSTS = re.compile(r"[A-Za-z0-9][\w.\[\],-]*", re.ASCII)
_JOB_NAME = re.compile(r"[\w.,:@+=()\[\]/ -]+")
_OPTION_VALUE = re.compile(r"[\w.,:@+=()\[\]/*&| -]+", re.ASCII)
_GPU_TYPE = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][\w.-]{0,14}", re.ASCII)
_MODULE = re.compile(r"[A-Za-z0-9][\w.+/-]*", re.ASCII)
_IMAGE = re.compile(r"[\w./:@+#-]+", re.ASCII)
_MOUNT = re.compile(r"/[^:,]*:/[^:,]*(:[a-z,+]+)?")
_SCRATCH = re.compile(r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<below>(/[\w.-]+)*)", re.ASCII)
_MAX_JOB_NAME = 64

# Of #SBATCH lines: sbatch reads quotes and backslashes, and takes what follows a blank and a # for a comment.
_SBATCH_REFUSED = frozenset("\"'\\`$#")

# Variables by which the ranks find each other, or that decide what their interpreter runs.
_OWN_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "IFS", "BASH_ENV"}
)
_OWN_PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "MEGATUNE_", "BASH_FUNC_")


def _matching(pattern: re.Pattern[str], clause: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(one_line(text)):
            raise ValueError(clause)
        return text

    return check


names = _matching(_NAMES, "a name, or several with commas; letters, digits and _.@+-")
constraint = _matching(_CONSTRAINT, "features of nodes joined by & | , and brackets, without blanks")
hosts = _matching(_HOSTS, "host names, as in node[01-04,07]")
option_value = _matching(_OPTION_VALUE, "letters, digits, blanks and _.,:@+=()[]/*&|-")
gpu_type = _matching(_GPU_TYPE, "a type of GPU as Slurm names it (`sinfo -o %G`), as in a100")
interface = _matching(_INTERFACE, "the name of one network interface, as in ib0")
module_name = _matching(_MODULE, "a module as `module load` takes it, as in cuda/12.8")
image = _matching(_IMAGE, "a container image: a path, or registry#name:tag")


def variable_name(text: str) -> str:
    """`text` itself. Raises ValueError where it is no name of a variable that a site may set."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError("the name of an environment variable")
    if text in _OWN_VARIABLES or text.startswith(_OWN_PREFIXES):
        raise ValueError("a variable that neither Slurm nor megatune sets itself")
    return text


def absolute_path(text: str) -> str:
    """`text` itself. Raises ValueError where it is no absolute path."""
    if not one_line(text).startswith("/"):
        raise ValueError("a path from the root, beginning with /")
    return text


def scratch(text: str) -> str:
    """`text` itself: an absolute path, or `$NAME` or `$NAME/below` of one variable that the node expands."""
    if text.startswith("$"):
        found = _SCRATCH.fullmatch(text)
        if found and ".." not in PurePosixPath(text).parts:
            return text
        raise ValueError("an absolute path, or $NAME or $NAME/folder of one variable")
    return absolute_path(text)


def mount(text: str) -> str:
    """`text` itself: `/outside:/inside` or `/outside:/inside:ro` of a container."""
    if not _MOUNT.fullmatch(one_line(text)):
        raise ValueError("/path/outside:/path/inside, and :ro behind it for one that is only read")
    return text


def srun_option(text: str) -> str:
    """`text` itself: one long option of srun, with its value behind an equals sign."""
    if not re.match(r"--[a-z][a-z0-9-]*(=|$)", one_line(text)):
        raise ValueError("one long option of srun with its value, as in --mpi=pmix")
    return text


def job_name(text: str) -> str:
    """A name for the queue made of `text`: what sbatch could misread becomes `-`.

    >>> job_name("runs/llama $(x)")
    'runs/llama (x)'
    """
    kept = "".join(char if _JOB_NAME.fullmatch(char) else "" for char in unicodedata.normalize("NFC", text))
    return " ".join(kept.split())[:_MAX_JOB_NAME].strip("/- ") or "megatune"


def given_job_name(text: str) -> str:
    """`text` itself. Raises ValueError where sbatch could read it as anything else."""
    if not _JOB_NAME.fullmatch(one_line(text)) or text != text.strip() or text.startswith("-"):
        raise ValueError("letters, digits, blanks and _.,:@+=()[]/-")
    return text


def log_pattern(folder: str, name: str) -> str:
    """The path of a log as Slurm's file name patterns spell it: a % of the folder is doubled.

    Raises ValueError where sbatch cannot be given the folder.
    """
    one_line(folder)
    found = sorted(set(folder) & _SBATCH_REFUSED)
    if found:
        raise ValueError(f"a path without {' '.join(found)}: sbatch would not take it as it is")
    return f"{folder.replace('%', '%%')}/{name}"


def sbatch_value(value: str) -> str:
    """`value` as it stands behind `--option=` of an #SBATCH line.

    >>> sbatch_value("two words")
    '"two words"'
    """
    one_line(value)
    if set(value) & _SBATCH_REFUSED:
        raise ValueError("text without quotes, backslashes, $ and #")
    return f'"{value}"' if " " in value else value


def scratch_parts(text: str) -> tuple[str, str]:
    """The variable (empty for a plain path) and what follows it.

    >>> scratch_parts("$TMPDIR/megatune")
    ('TMPDIR', '/megatune')
    """
    found = _SCRATCH.fullmatch(text)
    return (found["name"], found["below"]) if found else ("", text)
