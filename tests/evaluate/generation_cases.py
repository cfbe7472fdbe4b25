"""What ranks do in the tests of generation: answers at any layout, and those of plain transformers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parity_steps import plain_engine, tiny_run, world_of, zero_engine
from tiny_models import VOCABULARY

from megatune.engine.dtypes import DTYPES
from megatune.evaluate.choices import choose
from megatune.evaluate.decoding import Decoding, left_padded, until_stop
from megatune.evaluate.generation import generate_answers

STOP, PAD = 7, 0
NUM_NEW = 12


def prompts(number: int) -> list[list[int]]:
    """Prompts of 1 to 13 tokens."""
    generator = torch.Generator().manual_seed(11)
    return [
        torch.randint(1, VOCABULARY, (1 + (5 * row) % 13,), generator=generator).tolist()
        for row in range(number)
    ]


def plain_answers(folder: str, number: int, **options: Any) -> list[list[int]]:
    """Each prompt alone through the model that transformers loads, in one process."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(folder), dtype=torch.float32).eval()
    config = Decoding(max_new_tokens=NUM_NEW, **options).config(stop_ids=[STOP], pad_id=PAD)
    found = []
    for prompt in prompts(number):
        ids, mask = left_padded([prompt], PAD)
        with torch.no_grad():
            written = model.generate(ids, attention_mask=mask, generation_config=config)
        found.append(until_stop(written[0, len(prompt) :].tolist(), [STOP]))
    return found


def answers(folder: str, tp: int, gather: str, number: int, rows_at_once: int, **options: Any) -> Any:
    """The answers of this layout; tp=0 is one process without DeepSpeed."""
    run = tiny_run(folder, max(1, tp))
    engine = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp))
    with engine.speaking(gather) as speaker:  # type: ignore[arg-type]
        return generate_answers(
            engine.world,
            speaker,
            prompts(number),
            Decoding(max_new_tokens=NUM_NEW, **options),
            stop_ids=[STOP],
            pad_id=PAD,
            rows_at_once=rows_at_once,
        )


def family_answers(
    folders: dict[str, str], tp: int, gather: str, number: int, rows_at_once: int
) -> dict[str, Any]:
    """`answers` of every model."""
    return {name: answers(folder, tp, gather, number, rows_at_once) for name, folder in folders.items()}


def family_references(folders: dict[str, str], number: int) -> dict[str, Any]:
    return {name: plain_answers(folder, number) for name, folder in folders.items()}


def several(folder: str, tp: int, settings: list[dict[str, Any]]) -> list[Any]:
    """One layout with several settings: gather, number, rows_at_once and options of the decoding."""
    return [answers(folder, tp, **setting) for setting in settings]


def answers_around_steps(folder: str, tp: int) -> tuple[Any, Any, Any, bool]:
    """(answers before a step, after it once and per token, whether the step was as without answers)."""
    from parity_steps import batches, run_steps

    run = tiny_run(folder, tp)
    steps = batches(2)
    engine, silent = (zero_engine(run, world_of(tp), micro=4) for _ in range(2))
    expected = run_steps(silent, steps, accumulation=1, learning_rate=0.5)
    found, losses, norms = [], [], []
    for step in steps:
        found.append(_speak(engine, "once"))
        loss, norm = run_steps(engine, [step], accumulation=1, learning_rate=0.5)
        losses, norms = losses + loss, norms + norm
    return found[0], _speak(engine, "once"), _speak(engine, "per_token"), (losses, norms) == expected


def _speak(engine: Any, gather: str) -> Any:
    with engine.speaking(gather) as speaker:
        return generate_answers(
            engine.world, speaker, prompts(5), Decoding(max_new_tokens=NUM_NEW),
            stop_ids=[STOP], pad_id=PAD, rows_at_once=2,
        )  # fmt: skip


CHOICES = [[5, 3], [5, 9, 3], [5, 9, 8, 3], [40, 3], [41, 40, 3]]
"""The first begins the second but for its end, the second the third."""
Chosen = tuple[int, float, float]
"""(index, probability, loss of the gold answer)."""


def gold(number: int) -> list[int]:
    return [(3 * row) % len(CHOICES) for row in range(number)]


def chosen(folder: str, tp: int, gather: str, number: int, rows_at_once: int) -> list[Chosen]:
    run = tiny_run(folder, max(1, tp))
    engine = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp))
    with engine.speaking(gather) as speaker:  # type: ignore[arg-type]
        found = choose(
            engine.world, speaker, prompts(number), CHOICES, gold(number), rows_at_once=rows_at_once
        )
    assert found is not None
    return [(one.index, one.probability, one.gold_loss) for one in found]


def family_chosen(folders: dict[str, str], tp: int, number: int, rows_at_once: int) -> dict[str, Any]:
    return {name: chosen(folder, tp, "once", number, rows_at_once) for name, folder in folders.items()}


def family_chosen_by_hand(folders: dict[str, str], number: int) -> dict[str, Any]:
    return {name: chosen_by_hand(folder, number) for name, folder in folders.items()}


def chosen_by_hand(folder: str, number: int) -> list[Chosen]:
    """The same from whole sequences through transformers, one after another."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(folder), dtype=DTYPES["fp32"]).eval()
    found = []
    for prompt, right in zip(prompts(number), gold(number), strict=True):
        shares, losses = [], []
        for choice in CHOICES:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 :]
            share = 1.0
            for at, token in enumerate(choice):
                rivals = sorted(
                    {other[at] for other in CHOICES if other[:at] == choice[:at] and len(other) > at}
                )
                share *= float(logits[at, rivals].softmax(dim=-1)[rivals.index(token)])
            shares.append(share)
            losses.append(float(F.cross_entropy(logits[:-1], torch.tensor(choice), reduction="sum")))
        assert abs(sum(shares) - 1) < 1e-5
        found.append((max(range(len(shares)), key=shares.__getitem__), max(shares), losses[right]))
    return found
