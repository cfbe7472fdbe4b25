"""One rank of a group that answers prompts: `python -m megatune.evaluate.writing_rank QUESTION.json`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatune.engine.asked import answer_as_rank
from megatune.engine.world import World
from megatune.evaluate.conversation import converse
from megatune.evaluate.decoding import Decoding
from megatune.evaluate.writer import answer_prompts, open_writer


def write_answers(question: Mapping[str, Any], world: World) -> dict[str, Any]:
    """The answers to the prompts, or a conversation where there are none. Collective: every rank calls it."""
    folder, decoding = Path(question["model"]), Decoding(**question["decoding"])
    trusted = question["trust_remote_code"]
    if question["prompts"] is None:
        with open_writer(folder, decoding, world, trust_remote_code=trusted) as writer:
            converse(writer, remembers=question["chat"], streams=question["show"])
        return {"answers": []}

    def show(prompt: str) -> None:
        if world.is_first:
            print(f"> {prompt}", flush=True)

    answers = answer_prompts(
        folder,
        question["prompts"],
        chat=question["chat"],
        decoding=decoding,
        world=world,
        before_each=show if question["show"] else None,
        trust_remote_code=trusted,
    )
    return {"answers": answers}


if __name__ == "__main__":
    sys.exit(answer_as_rank(Path(sys.argv[1]), write_answers))
