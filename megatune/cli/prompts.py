"""Where the prompts of `megatune generate` come from: the command line, files, standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

from megatune.data.opened import decoded, guessed
from megatune.errors import ConfigError

_COMMAND = "megatune generate"
_INPUT = Path("-")


def check_given(prompts: Sequence[str]) -> None:
    """Raise ConfigError for prompts of the command line that are no text in the encoding of the terminal."""
    for number, prompt in enumerate(prompts, start=1):
        raw = prompt.encode(errors="surrogateescape")
        _text(raw, f"--prompt {number}", "Type it in a terminal whose encoding is UTF-8")


def lines_of(file: Path | None) -> list[str]:
    """Each line of a file that is not blank. Raises ConfigError, or DataError for what is no UTF-8."""
    if file is None:
        return []
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError([f"--file {file} cannot be read: {error}"], source=_COMMAND) from error
    # Only newlines end a line: text may hold U+2028.
    found = [decoded(line, file, number) for number, line in enumerate(raw.split(b"\n"), start=1)]
    return _not_blank(found)


def whole_texts(files: Sequence[Path]) -> list[str]:
    """Each file as one prompt, without the line break at its end; `-` is standard input.

    Raises ConfigError, or DataError for what is no UTF-8. All files that cannot be read are told at once.
    """
    problems, found = [], []
    for file in files:
        try:
            raw = sys.stdin.buffer.read() if file == _INPUT else file.read_bytes()
        except OSError as error:
            problems.append(f"--prompt-file {file} cannot be read: {error}")
            continue
        name = Path("standard input") if file == _INPUT else file
        parts = [decoded(line, name, n) for n, line in enumerate(raw.splitlines(keepends=True), start=1)]
        text = "".join(parts).replace("\r\n", "\n").removesuffix("\n")
        if text.strip():
            found.append(text)
        else:
            problems.append(f"--prompt-file {file} is empty")
    if problems:
        raise ConfigError(problems, source=_COMMAND)
    return found


def lines_of_input() -> list[str]:
    """Each line of standard input that is not blank. Raises ConfigError for what is no UTF-8."""
    raw = sys.stdin.buffer.read().split(b"\n")
    fix = "Pipe it through iconv -f {encoding} -t utf-8"
    return _not_blank(
        [_text(line, f"standard input, line {n}", fix, n) for n, line in enumerate(raw, start=1)]
    )


def _not_blank(lines: Sequence[str]) -> list[str]:
    return [line.rstrip("\r") for line in lines if line.strip()]


def _text(raw: bytes, what: str, fix: str, number: int = 1) -> str:
    """number: of the line; only the first may begin with the mark of an encoding."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        encoding, meant = guessed(number, raw, error.start)
        problem = f"{what} is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}). {meant}. "
        raise ConfigError([problem + fix.format(encoding=encoding)], source=_COMMAND) from None
