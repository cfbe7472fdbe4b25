"""`megatune generate`."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from megatune.cli.export import model_folder
from megatune.cli.prompts import check_given, lines_of, lines_of_input, whole_texts
from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.launch.run_folder import RunFolder
from megatune.report.tables import show

if TYPE_CHECKING:
    from megatune.evaluate.decoding import Decoding

_COMMAND = "megatune generate"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What the command line says beside model and prompts."""

    chat: bool
    trust_remote_code: bool = False
    """Run Python files of the model's folder, as a run may have said already."""
    tensor_parallel: int
    as_json: bool
    stream: bool | None
    """Print answers as they are written; None: on a terminal."""

    @property
    def streams(self) -> bool:
        """Whether that is done."""
        return sys.stdout.isatty() if self.stream is None else self.stream


def choose_decoding(
    *,
    max_new_tokens: int,
    num_beams: int,
    do_sample: bool,
    drawing: Mapping[str, float | None],
    seed: int,
    streams: bool,
) -> "Decoding":
    """How answers are written. Raises ConfigError for options that would have no effect, and says what has.

    drawing: temperature, top_k and top_p, None where not given. streams: --stream is given.
    """
    from megatune.evaluate.decoding import Decoding

    given = {name: value for name, value in drawing.items() if value is not None}
    problems = []
    if given and not do_sample:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        problems.append(f"{names}: only drawn answers have them; add --sample, or take {names} out")
    if do_sample and num_beams > 1:
        problems.append("--sample draws and --beams searches; use one of them")
    if streams and num_beams > 1:
        problems.append(
            f"--stream prints tokens as they come, and --beams {num_beams} changes its mind about them; use one of them"
        )
    if problems:
        raise ConfigError(problems, source=_COMMAND)
    return Decoding(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=do_sample,
        seed=seed,
        **given,  # type: ignore[arg-type]  # top_k is a whole number there
    )


def generate_answers(
    model: Path,
    prompts: list[str],
    file: Path | None,
    decoding: "Decoding",
    options: GenerateOptions,
    *,
    whole_files: Sequence[Path] = (),
) -> None:
    """Answer every prompt, those of `file` one a line and each of `whole_files` one.

    Without any hold a conversation, or take each line of standard input for a prompt.
    """
    check_given(prompts)
    prompts = [*prompts, *whole_texts(whole_files), *lines_of(file)]
    is_conversation = not prompts and sys.stdin.isatty()
    if not prompts and not is_conversation:
        prompts = lines_of_input()
    if not prompts and not is_conversation:
        raise ConfigError(
            ["no prompt: give --prompt, --prompt-file, --file, or lines on standard input"], source=_COMMAND
        )
    if _is_trusted(model):
        options = replace(options, trust_remote_code=True)
    with model_folder(model) as folder:
        if is_conversation:
            _converse(folder, decoding, options)
        else:
            _answer_all(folder, prompts, decoding, options)


def _is_trusted(model: Path) -> bool:
    """Whether `model` is a run whose file says so."""
    run_file = RunFolder(model).run_file
    return run_file.is_file() and load_run(run_file).run.model.trust_remote_code


def _answer_all(folder: Path, prompts: list[str], decoding: "Decoding", options: GenerateOptions) -> None:
    streams = options.streams and not options.as_json and decoding.num_beams == 1
    answers = _answers(folder, prompts, decoding, options, streams)
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    if streams:
        return
    lines = [Text(f"> {row['prompt']}\n{row['answer']}\n") for row in rows]
    show({"schema": 1, "answers": rows}, *lines, as_json=options.as_json)


def _answers(
    folder: Path, prompts: list[str], decoding: "Decoding", options: GenerateOptions, streams: bool
) -> list[str]:
    if options.tensor_parallel > 1:
        question = _question(folder, decoding, options, prompts=prompts, show=streams)
        return _ask(question, options.tensor_parallel, show=streams)
    from megatune.evaluate.writer import answer_prompts

    if streams:
        return answer_prompts(
            folder,
            prompts,
            chat=options.chat,
            decoding=decoding,
            before_each=lambda prompt: print(f"> {prompt}"),
            trust_remote_code=options.trust_remote_code,
        )
    # Libraries greet on standard output when they are first used; it belongs to the answers alone.
    with redirect_stdout(sys.stderr):
        return answer_prompts(
            folder,
            prompts,
            chat=options.chat,
            decoding=decoding,
            trust_remote_code=options.trust_remote_code,
        )


def _converse(folder: Path, decoding: "Decoding", options: GenerateOptions) -> None:
    """Take turns at the terminal until the input ends; with --chat the model sees all that was said."""
    if options.tensor_parallel > 1:
        question = _question(folder, decoding, options, prompts=None, show=options.streams)
        _ask(question, options.tensor_parallel, show=True, reads_input=True)
        return
    from megatune.evaluate.conversation import converse
    from megatune.evaluate.writer import open_writer

    with open_writer(folder, decoding, trust_remote_code=options.trust_remote_code) as writer:
        converse(writer, remembers=options.chat, streams=options.streams)


def _question(
    folder: Path, decoding: "Decoding", options: GenerateOptions, *, prompts: list[str] | None, show: bool
) -> dict[str, Any]:
    """What the ranks are asked; without prompts, to hold a conversation."""
    return {
        "tensor_parallel": options.tensor_parallel,
        "model": str(folder),
        "prompts": prompts,
        "chat": options.chat,
        "trust_remote_code": options.trust_remote_code,
        "decoding": asdict(decoding),
        "show": show,
    }


def _ask(question: dict[str, Any], num_ranks: int, *, show: bool, reads_input: bool = False) -> list[str]:
    from megatune.launch.ask_ranks import ask_ranks

    module = "megatune.evaluate.writing_rank"
    found: list[str] = ask_ranks(module, question, num_ranks=num_ranks, show=show, reads_input=reads_input)[
        "answers"
    ]
    return found
