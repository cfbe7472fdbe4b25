"""`megatune checkpoint ...`: what can be done with checkpoints outside of a run."""

from pathlib import Path

import typer

from megatune.cli.arguments import before_torch

checkpoint_app = typer.Typer(
    name="checkpoint",
    help="Look after checkpoints.\n\nExample: megatune checkpoint convert checkpoint-500 runs/first --to megatune",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@checkpoint_app.command()
def convert(
    source: Path = typer.Argument(
        help="DeepSpeed's global_stepN (ZeRO-3 or universal) or the folder above it, the Trainer's checkpoint-N; "
        "with --to deepspeed-universal a run folder or a checkpoint folder of megatune.",
        metavar="SOURCE",
    ),
    target: Path = typer.Argument(help="Folder to write; into megatune a run folder.", metavar="TARGET"),
    to: str = typer.Option("megatune", "--to", help="megatune or deepspeed-universal."),
    model: Path | None = typer.Option(
        None, "--model", help="The model's folder (config.json), when it is not beside SOURCE."
    ),
    thaw: bool = typer.Option(
        False, "--thaw", help="Take parameters that were frozen as well, with zero moments."
    ),
) -> None:
    """Convert a checkpoint of DeepSpeed or of Hugging Face's Trainer into megatune's, or megatune's into DeepSpeed's.

    Example: megatune checkpoint convert checkpoint-500 runs/first --to megatune
    """
    before_torch()
    from megatune.cli.convert import convert_checkpoint

    convert_checkpoint(source, target, to=to, model=model, thaw=thaw)
