"""Answers from a plain Hugging Face folder: on one device, or on the ranks of a tensor-parallel group."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, TextStreamer

from megatune.data.questions import prompt_ids, stop_ids
from megatune.data.tokenize import chat_renderer, padding_id
from megatune.engine.inference import InferenceEngine
from megatune.engine.speaker import Speaker
from megatune.engine.world import World, own_device, single_world
from megatune.errors import ModelError, PromptError
from megatune.evaluate.decoding import Decoding
from megatune.evaluate.generation import generate_answers
from megatune.model.build import build_model
from megatune.model.heads import kind_named_by
from megatune.model.source import open_source
from megatune.tasks import RenderChat, Segment
from megatune.tasks.columns import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A loaded model that writes answers. Every method is collective over the ranks that hold it."""

    world: World
    speaker: Speaker
    tokenizer: "PreTrainedTokenizerBase"
    decoding: Decoding
    render_chat: RenderChat | None

    def answer(self, prompt: str | Messages, *, show: bool = False) -> str:
        """What follows a text, or what the assistant says next.

        `show`: print it on the first rank while it is written; not with beams, which change their mind.
        Raises PromptError as `ids_of` does.
        """
        ids = self.ids_of(prompt)
        show = show and self.world.is_first and self.decoding.num_beams == 1
        found = generate_answers(
            self.world,
            self.speaker,
            [ids],
            self.decoding,
            stop_ids=stop_ids(self.tokenizer),
            pad_id=padding_id(self.tokenizer),
            rows_at_once=1,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            if show
            else None,
        )
        assert found is not None, "nobody gives up"
        return str(self.tokenizer.decode(found[0], skip_special_tokens=True)).strip()

    def ids_of(self, prompt: str | Messages) -> list[int]:
        """The tokens of a prompt. Raises PromptError where there is none, or no room for them and an answer."""
        ids = prompt_ids(self._segment(prompt), self.tokenizer)
        if not ids:
            raise PromptError(
                "an empty prompt gives this model nothing to go on from: its tokenizer puts no token before a text. "
                "Give at least one character."
            )
        longest, most = self.speaker.built.shape.max_positions, self.decoding.max_new_tokens
        if longest is not None and len(ids) + most > longest:
            raise PromptError(
                f"a prompt of {len(ids)} tokens{_turns(prompt)} and an answer of up to {most} are more than the "
                f"{longest} positions of this model. Shorten the prompt, or allow fewer tokens (--max-new-tokens)."
            )
        return ids

    def _segment(self, prompt: str | Messages) -> Segment:
        if isinstance(prompt, str):
            return Segment(prompt, is_target=False)
        if self.render_chat is None:
            raise ModelError("this model has no chat template; leave --chat out.")
        try:
            rendered = self.render_chat(prompt, True)
        except RowError as error:
            raise PromptError(f"a prompt {error}") from error
        return Segment(rendered, is_target=False, templated=True)


@contextmanager
def open_writer(
    folder: Path, decoding: Decoding, world: World | None = None, *, trust_remote_code: bool = False
) -> Iterator[Writer]:
    """The model and tokenizer of `folder` in fp32, cut for the ranks of `world`; alone without it.

    Raises ModelError when the folder holds none that transformers can load, or one with a classifier head.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}.")
    world = world or single_world(own_device())
    source = open_source(folder, trust_remote_code=trust_remote_code)
    if kind_named_by(source.config.architectures) is not None:
        raise ModelError(
            f"the model in {folder} is a classifier ({', '.join(source.config.architectures or ())}), which writes no "
            "text; `megatune evaluate` scores what it says of rows."
        )
    built = build_model(source, dtype=torch.float32, group=world.tensor_group)
    tokenizer = _tokenizer(folder, trust_remote_code)
    with InferenceEngine(built, world).speaking() as speaker:
        yield Writer(
            world=world,
            speaker=speaker,
            tokenizer=tokenizer,
            decoding=decoding,
            render_chat=chat_renderer(tokenizer),
        )


def answer_prompts(
    folder: Path,
    prompts: list[str],
    *,
    chat: bool,
    decoding: Decoding,
    world: World | None = None,
    before_each: Callable[[str], None] | None = None,
    trust_remote_code: bool = False,
) -> list[str]:
    """The answer to each prompt; `chat`: through the chat template.

    before_each: told each prompt before it is answered; the answers are then printed as they are written.
    Raises PromptError, with the number of the prompt, before any is answered.
    """
    with open_writer(folder, decoding, world, trust_remote_code=trust_remote_code) as writer:
        asked: list[str | Messages] = [
            [{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts
        ]
        _check_all(writer, asked)
        answers = []
        for prompt, one in zip(prompts, asked, strict=True):
            if before_each is not None:
                before_each(prompt)
            answers.append(writer.answer(one, show=before_each is not None))
        return answers


def _check_all(writer: Writer, asked: list[str | Messages]) -> None:
    for number, one in enumerate(asked, start=1):
        try:
            writer.ids_of(one)
        except PromptError as error:
            if len(asked) == 1:
                raise
            raise PromptError(f"prompt {number} of {len(asked)}: {error}") from None


def _turns(prompt: str | Messages) -> str:
    return " (all that was said)" if not isinstance(prompt, str) and len(prompt) > 1 else ""


def _tokenizer(folder: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
