"""Arguments that several commands take, and what they all do before they import torch."""

import typer

RunFile = typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")
Overrides = typer.Argument(
    None, help="Values that win over the file: key.sub=value.", metavar="[KEY=VALUE]..."
)
AsJson = typer.Option(False, "--json", help="Print one JSON object instead of tables.")


def before_torch() -> None:
    """Import the heavy libraries for a command that needs them, and keep them quiet."""
    from megatune.launch.devices import count_gpus
    from megatune.launch.imports import uncollected
    from megatune.launch.ranks import use_cpu_when_alone

    use_cpu_when_alone(count_gpus())
    with uncollected():
        from megatune.model.quiet import quiet_libraries

    quiet_libraries()
