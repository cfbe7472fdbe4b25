"""Choose one of several answers by the model's own probabilities: constrained next-token scoring.

All answers stand in a tree of tokens. At each place where they part, the model's probabilities of the
next tokens that any answer has are made to sum to 1; an answer's probability is the product along its
way. The probabilities of all answers sum to 1, an answer that begins another one is told from it by its
end token, and only the places where answers part are computed: one forward when all begin differently.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatune.engine.speaker import Speaker
from megatune.engine.world import World
from megatune.evaluate.rounds import answer_in_rounds
from megatune.model.forward import accepts, model_arguments

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The likeliest answer of one row."""

    index: int
    probability: float


def branches(choices: Sequence[Sequence[int]]) -> dict[Prefix, list[int]]:
    """Prefix -> the tokens that may follow it, wherever several may; sorted. No two choices may be equal.

    >>> branches([[5, 9], [5, 7, 9], [6, 9]])
    {(): [5, 6], (5,): [7, 9]}
    """
    after: dict[Prefix, set[int]] = {}
    for choice in choices:
        for at, token in enumerate(choice):
            after.setdefault(tuple(choice[:at]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in after.items() if len(tokens) > 1}


def choose(
    world: World,
    speaker: Speaker,
    prompts: Sequence[list[int]],
    choices: Sequence[Sequence[int]],
    *,
    rows_at_once: int,
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[Choice] | None:
    """The likeliest of `choices` after each prompt. Collective: every rank calls it.

    None when given up: see `answer_in_rounds`.
    """
    parting = branches(choices)

    def answer(rows: list[int], batch: int) -> list[Choice]:
        del batch
        scores = torch.zeros(len(rows), len(choices))
        for prefix, tokens in parting.items():
            logits = _next_logits(speaker, [prompts[row] + list(prefix) for row in rows], world.device)
            log_shares = logits[:, tokens].float().log_softmax(dim=-1).cpu()
            for index, choice in enumerate(choices):
                if len(choice) > len(prefix) and tuple(choice[: len(prefix)]) == prefix:
                    scores[:, index] += log_shares[:, tokens.index(choice[len(prefix)])]
        best = scores.max(dim=-1)
        return [
            Choice(int(index), float(value.exp()))
            for index, value in zip(best.indices, best.values, strict=True)
        ]

    return answer_in_rounds(
        world,
        [len(prompt) for prompt in prompts],
        answer,
        rows_at_once=rows_at_once,
        in_step=speaker.in_step,
        is_given_up=is_given_up,
    )


def _next_logits(speaker: Speaker, rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """(rows, vocabulary): what the model expects after each. Padded at the right, which no token before reads."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = int(lengths.max())
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    positions = torch.arange(width).expand(len(rows), width)
    arguments = model_arguments(speaker.model, ids.to(device), positions.to(device))
    last = lengths - 1
    if accepts(speaker.model, "logits_to_keep"):
        kept, last = last.unique(return_inverse=True)
        arguments["logits_to_keep"] = kept
    logits: torch.Tensor = speaker.model(**arguments).logits
    return logits[torch.arange(len(rows), device=device), last]
