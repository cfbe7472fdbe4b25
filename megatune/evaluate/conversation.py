"""Turns at the terminal: a person writes, the model answers."""

import sys

from megatune.evaluate.writer import Messages, Writer


def converse(writer: Writer, *, remembers: bool, streams: bool) -> None:
    """Take turns until the input ends. Collective: every rank calls it; the first one reads and prints.

    remembers: the model sees all that was said since an empty line. streams: answers are printed as they are written.
    """
    world = writer.world
    said: Messages = []
    if world.is_first:
        print("Ctrl-D ends; an empty line forgets what was said.", file=sys.stderr, flush=True)
    while (line := world.broadcast_object(_line() if world.is_first else None)) is not None:
        if not line.strip():
            said = []
            continue
        said.append({"role": "user", "content": line})
        answer = writer.answer(said if remembers else line, show=streams)
        if world.is_first and not (streams and writer.decoding.num_beams == 1):
            print(answer, flush=True)
        said.append({"role": "assistant", "content": answer})


def _line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None
