"""`megatune checkpoint ...`: what can be done with checkpoints outside of a run."""

import sys
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, before_torch

Run = typer.Argument(help="A run folder.", metavar="RUN")

checkpoint_app = typer.Typer(
    name="checkpoint",
    help="List, verify, prune and convert checkpoints.\n\nExample: megatune checkpoint verify runs/first",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@checkpoint_app.command("list")
def list_(run: Path = Run, as_json: bool = AsJson) -> None:
    """Show the checkpoints of a run: step, layout, size, and what is wrong with those that are not whole.

    Example: megatune checkpoint list runs/first
    """
    from megatune.cli.checkpoint import list_checkpoints

    list_checkpoints(run, as_json=as_json)


@checkpoint_app.command()
def verify(
    path: Path = typer.Argument(
        help="A run folder (all its checkpoints) or a checkpoint.", metavar="RUN|CKPT"
    ),
    as_json: bool = AsJson,
) -> None:
    """Read every byte again and compare it with the hashes taken when it was written. Exit 1 when one differs.

    Example: megatune checkpoint verify runs/first
    """
    from megatune.cli.checkpoint import verify_checkpoints

    sys.exit(verify_checkpoints(path, as_json=as_json))


@checkpoint_app.command()
def prune(
    run: Path = Run,
    keep: int = typer.Option(..., "--keep", min=1, help="Newest checkpoints to keep."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be removed."),
    as_json: bool = AsJson,
) -> None:
    """Remove old checkpoints; the best one, those kept for ever and what megatune did not write stay.

    Example: megatune checkpoint prune runs/first --keep 2 --dry-run
    """
    from megatune.cli.checkpoint import prune_checkpoints

    prune_checkpoints(run, keep=keep, dry_run=dry_run, as_json=as_json)


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
