"""`megatune generate`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from rich.text import Text

from megatune.errors import ConfigError
from megatune.report.tables import show


def generate_answers(
    model: Path, prompts: list[str], *, chat: bool, max_new_tokens: int, as_json: bool
) -> None:
    """Answer every prompt; without one, each line of standard input is a prompt."""
    if not prompts and sys.stdin.isatty():
        raise ConfigError(
            ["no prompt: give --prompt, or lines on standard input"], source="megatune generate"
        )
    prompts = prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    from megatune.evaluate.generate import answer_prompts

    # Libraries greet on standard output when they are first used; it belongs to the answers alone.
    with redirect_stdout(sys.stderr):
        answers = answer_prompts(model, prompts, chat=chat, max_new_tokens=max_new_tokens)
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    lines = [Text(f"> {row['prompt']}\n{row['answer']}\n") for row in rows]
    show({"schema": 1, "answers": rows}, *lines, as_json=as_json)
