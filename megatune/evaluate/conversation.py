"""Turns at the terminal: a person writes, the model answers."""

import sys

from megatune.errors import PromptError
from megatune.evaluate.writer import Messages, Writer
from megatune.units import counted


def converse(writer: Writer, *, remembers: bool, streams: bool) -> None:
    """Take turns until the input ends. Collective: every rank calls it; the first one reads and prints.

    remembers: the model sees all that was said since an empty line. A line that cannot be answered is left out, said
    so, and another is asked for. streams: answers are printed as they are written.
    """
    world = writer.world
    said: Messages = []
    if world.is_first:
        print("Ctrl-D ends; an empty line forgets what was said.", file=sys.stderr, flush=True)
    while (line := world.broadcast_object(_line() if world.is_first else None)) is not None:
        if not line.strip():
            said = []
            continue
        asked: Messages = [*said, {"role": "user", "content": line}]
        try:
            answer = writer.answer(asked if remembers else line, show=streams)
        except PromptError as error:
            if world.is_first:
                _refuse(error, num_turns=len(said) // 2 if remembers else 0)
            continue
        if world.is_first and not (streams and writer.decoding.num_beams == 1):
            print(answer, flush=True)
        said = [*asked, {"role": "assistant", "content": answer}]


def _refuse(error: PromptError, num_turns: int) -> None:
    kept = (
        f" What was said before ({counted(num_turns, 'turn')}) is kept; an empty line forgets it."
        if num_turns
        else ""
    )
    print(f"megatune: not answered: {error}{kept}", file=sys.stderr, flush=True)


def _line() -> str | None:
    """What a person writes, None at the end."""
    while True:
        try:
            line = input("> ")
            line.encode()  # half a character, where the terminal is not UTF-8
            return line
        except EOFError:
            print()
            return None
        except UnicodeError:
            print("megatune: not answered: this line is not UTF-8.", file=sys.stderr, flush=True)
