"""The `megatune` program: its commands, and what becomes of their errors."""

import sys

import typer

from megatune import __version__
from megatune.cli import bench_commands, cluster_commands, commands, task_commands, tune_commands
from megatune.cli.checkpoint_commands import checkpoint_app
from megatune.errors import MegatuneError

app = typer.Typer(
    name="megatune",
    help="Fine-tune all parameters of a causal language model with DeepSpeed ZeRO-3 x tensor parallelism.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
commands.register(app)
task_commands.register(app)
cluster_commands.register(app)
tune_commands.register(app)
bench_commands.register(app)
app.add_typer(checkpoint_app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Mistakes of the user end with a message and exit code 2, without a traceback."""
    try:
        app()
    except MegatuneError as error:
        text = str(error)
        # What a command says of its own line begins with its name already: `megatune generate: no prompt`.
        print(text if text.startswith("megatune ") else f"megatune: {text}", file=sys.stderr)
        sys.exit(error.exit_code)
