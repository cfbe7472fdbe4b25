"""The commands that ask a model: evaluate and generate."""

from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, Overrides, before_torch

Model = typer.Argument(help="A Hugging Face model folder, or a run folder.", metavar="MODEL|RUN")
TensorParallel = typer.Option(1, "--tp", min=1, help="Devices that share each layer.")


def generate(
    model: Path = Model,
    prompt: list[str] = typer.Option([], "--prompt", "-p", help="A prompt; can be given several times."),
    prompt_file: list[Path] = typer.Option(
        [], "--prompt-file", "-f", help="A file that is one prompt, line breaks and all; - is standard input."
    ),
    file: Path | None = typer.Option(None, "--file", help="A file with a prompt on each line."),
    chat: bool = typer.Option(False, "--chat", help="Put each prompt through the chat template."),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer, in tokens."),
    beams: int = typer.Option(1, "--beams", min=1, help="Beams of the search for an answer; 1 is greedy."),
    sample: bool = typer.Option(False, "--sample", help="Draw tokens instead of taking the likeliest."),
    temperature: float | None = typer.Option(None, "--temperature", min=1e-3, help="Of drawing; default: 1."),
    top_k: int | None = typer.Option(
        None, "--top-k", min=0, help="Draw among so many likeliest tokens; default: 0, all."
    ),
    top_p: float | None = typer.Option(
        None, "--top-p", min=1e-3, max=1.0, help="Draw among tokens of this probability; default: 1."
    ),
    seed: int = typer.Option(42, "--seed", min=0, help="Decides what is drawn."),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Run the Python files of the model's folder; a run says it itself."
    ),
    tensor_parallel: int = TensorParallel,
    stream: bool | None = typer.Option(
        None, "--stream/--no-stream", help="Print answers as they are written; default: on a terminal."
    ),
    as_json: bool = AsJson,
) -> None:
    """Answer prompts with a model: given here, in a file, on standard input, or in a conversation.

    Example: megatune generate runs/first/export --chat -p "What is a telescope?"
    """
    before_torch()
    from megatune.cli.generate import GenerateOptions, choose_decoding, generate_answers

    decoding = choose_decoding(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=sample,
        drawing={"temperature": temperature, "top_k": top_k, "top_p": top_p},
        seed=seed,
        streams=stream is True,
    )
    options = GenerateOptions(
        chat=chat,
        trust_remote_code=trust_remote_code,
        tensor_parallel=tensor_parallel,
        as_json=as_json,
        stream=stream,
    )
    generate_answers(model, prompt, file, decoding, options, whole_files=prompt_file)


def evaluate(
    model: Path = Model,
    overrides: list[str] | None = Overrides,
    data: list[str] = typer.Option([], "--data", help="Rows to score: files, folders, or a hub id."),
    split: str = typer.Option("test", "--split", help="test or validation: of a run without --data."),
    task: str | None = typer.Option(None, "--task", help="What the rows are; a run knows its own."),
    answers: Path | None = typer.Option(None, "--answers", help="Write gold and answers of all rows here."),
    tensor_parallel: int = TensorParallel,
    num_ranks: int | None = typer.Option(
        None, "--nproc", min=1, help="Ranks; those beyond --tp share the rows."
    ),
    as_json: bool = AsJson,
) -> None:
    """Score a model on rows with answers: loss, perplexities and the metrics of the task.

    Example: megatune evaluate runs/first --data data/test.jsonl --json
    """
    before_torch()
    from megatune.cli.evaluate import EvaluateOptions, evaluate_model

    options = EvaluateOptions(
        data=data,
        split=split,
        task=task,
        answers=answers,
        tensor_parallel=tensor_parallel,
        num_ranks=num_ranks or tensor_parallel,
        as_json=as_json,
    )
    evaluate_model(model, overrides or [], options)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (evaluate, generate):
        app.command()(command)
