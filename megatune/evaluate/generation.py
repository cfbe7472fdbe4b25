"""Answers to prompts, written by all ranks: greedy, beams or samples, with a key-value cache on each rank."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from megatune.engine.speaker import Speaker
from megatune.engine.world import World
from megatune.evaluate.decoding import Decoding, left_padded, until_stop
from megatune.evaluate.rounds import answer_in_rounds

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


def generate_answers(
    world: World,
    speaker: Speaker,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    stop_ids: list[int],
    pad_id: int,
    rows_at_once: int,
    is_given_up: Callable[[], bool] = lambda: False,
    streamer: "BaseStreamer | None" = None,
) -> list[list[int]] | None:
    """The tokens that follow each prompt, up to the one that stops. Collective: every rank calls it.

    A data-parallel rank whose rows end early goes on with its next batch. Samples depend on the seed and
    on `rows_at_once`, and not on the layout. `streamer`: of transformers, is given the tokens of one row as
    they come. None when given up: see `answer_in_rounds`.
    """
    config = decoding.config(stop_ids=stop_ids, pad_id=pad_id)

    def answer(rows: list[int], batch: int) -> list[list[int]]:
        ids, mask = left_padded([prompts[row] for row in rows], pad_id)
        with _own_random_numbers(world.device, decoding.seed + batch):
            written = speaker.model.generate(
                ids.to(world.device),
                attention_mask=mask.to(world.device),
                generation_config=config,
                synced_gpus=speaker.in_step and world.size > 1,
                streamer=streamer,
            )
        return [until_stop(row, stop_ids) for row in written[:, ids.shape[1] :].tolist()]

    return answer_in_rounds(
        world,
        [len(prompt) for prompt in prompts],
        answer,
        rows_at_once=rows_at_once,
        in_step=speaker.in_step,
        is_given_up=is_given_up,
    )


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Numbers of a batch's own: equal on the ranks that write it together, and training's are left alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
