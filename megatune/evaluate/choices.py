"""Choose one of several answers by the model's own probabilities: constrained next-token scoring.

All answers stand in a tree of tokens. At each place where they part, the model's probabilities of the
next tokens that any answer has are made to sum to 1; an answer's probability is the product along its
way. The probabilities of all answers sum to 1, and an answer that begins another one is told from it by
its end token. A prompt is computed once; the tokens behind it, of places where answers part and of the
gold answer, for its loss, go on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatune.engine.speaker import Speaker
from megatune.engine.world import World
from megatune.evaluate.read_prompts import ReadPrompts
from megatune.evaluate.rounds import answer_in_rounds

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The likeliest answer of one row."""

    index: int
    probability: float
    gold_loss: float
    """Of the gold answer: the sum over its tokens, in nats, among the whole vocabulary."""


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


def ways(prefixes: Sequence[Prefix]) -> list[Prefix]:
    """The fewest sequences that all `prefixes` begin; the empty one needs none.

    >>> ways([(), (5,), (5, 9), (6,)])
    [(5, 9), (6,)]
    """
    return [
        one
        for one in prefixes
        if one and not any(other[: len(one)] == one for other in prefixes if len(other) > len(one))
    ]


def choose(
    world: World,
    speaker: Speaker,
    prompts: Sequence[list[int]],
    choices: Sequence[Sequence[int]],
    gold: Sequence[int],
    *,
    rows_at_once: int,
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[Choice] | None:
    """The likeliest of `choices` after each prompt. Collective: every rank calls it.

    gold: the index of each prompt's own. None when given up: see `answer_in_rounds`.
    """
    parting = branches(choices)

    def answer(rows: list[int], batch: int) -> list[Choice]:
        del batch
        read = ReadPrompts(speaker, [prompts[row] for row in rows], world.device)
        best = _log_shares(read, len(rows), choices, parting).max(dim=-1)
        losses = _losses(read, [choices[gold[row]] for row in rows], longest=max(map(len, choices)))
        return [
            Choice(int(index), float(value.exp()), loss)
            for index, value, loss in zip(best.indices, best.values, losses, strict=True)
        ]

    return answer_in_rounds(
        world,
        [len(prompt) for prompt in prompts],
        answer,
        rows_at_once=rows_at_once,
        in_step=speaker.in_step,
        is_given_up=is_given_up,
    )


def _log_shares(
    read: ReadPrompts, num_rows: int, choices: Sequence[Sequence[int]], parting: dict[Prefix, list[int]]
) -> torch.Tensor:
    """(rows, choices): the logarithm of the probability of each choice among all."""
    logits: dict[Prefix, torch.Tensor] = {(): read.next}
    for way in ways(list(parting)):
        found = read.behind([way] * num_rows)
        logits |= {way[: at + 1]: found[:, at] for at in range(len(way))}
    scores = torch.zeros(num_rows, len(choices))
    for prefix, tokens in parting.items():
        log_shares = logits[prefix][:, tokens].log_softmax(dim=-1).cpu()
        for index, choice in enumerate(choices):
            if len(choice) > len(prefix) and tuple(choice[: len(prefix)]) == prefix:
                scores[:, index] += log_shares[:, tokens.index(choice[len(prefix)])]
    return scores


def _losses(read: ReadPrompts, answers: Sequence[Sequence[int]], *, longest: int) -> list[float]:
    """The loss of each row's answer. `longest`: of all choices, for ranks must ask the model equally often."""
    logits = read.next[:, None]
    if longest > 1:
        tails = [[*answer[:-1], *[0] * (longest - len(answer))] for answer in answers]
        logits = torch.cat([logits, read.behind(tails)], dim=1)
    wanted = torch.zeros(logits.shape[:2], dtype=torch.int64)
    counted = torch.zeros(logits.shape[:2])
    for row, answer in enumerate(answers):
        wanted[row, : len(answer)] = torch.tensor(answer)
        counted[row, : len(answer)] = 1
    found = logits.log_softmax(dim=-1).gather(2, wanted[..., None].to(logits.device))[..., 0]
    losses: list[float] = (-found.cpu() * counted).sum(dim=1).tolist()
    return losses
