"""The commands. Each imports what it needs when it runs: `--help` must not load torch."""

import json
import sys
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, Overrides, RunFile, before_torch


def init(
    task: str = typer.Option(
        "text", "--task", help="text, dialogue, classification, ner, qa, summarization or translation."
    ),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of run files, for editors."),
) -> None:
    """Print a commented run file.

    Example: megatune init --task dialogue > run.yaml
    """
    from megatune.config import initial_run_file, run_schema

    print(json.dumps(run_schema(), indent=2) if schema else initial_run_file(task))


def fetch(
    name: str = typer.Argument(
        "demo", help="What to fetch: demo, dialogue, topics, trivia, ner, summarization or translation."
    ),
    folder: Path = typer.Option(Path("assets"), "--to", help="Folder to put it in."),
) -> None:
    """Fetch a model, data and a run file, checked against pinned hashes; no hub is needed.

    Example: megatune fetch demo --to assets
    """
    before_torch()
    from megatune.data.assets import fetch_asset

    for line in fetch_asset(name, folder):
        print(line)


def prepare(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    preview: int = typer.Option(
        0, "--preview", help="Show this many rows, with the tokens that are trained."
    ),
    as_json: bool = AsJson,
) -> None:
    """Tokenise and pack the data of a run, without starting it; processes of mpirun share the work.

    Example: megatune prepare run.yaml --preview 2
    """
    from megatune.cli.prepare import prepare_run

    sys.exit(prepare_run(run_file, overrides or [], preview, as_json=as_json))


def plan(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    nodes: int | None = typer.Option(None, "--nodes", min=1, help="Nodes of the job."),
    gpus_per_node: int | None = typer.Option(
        None, "--gpus-per-node", min=0, help="GPUs on each; 0 plans for CPUs."
    ),
    gpu: str | None = typer.Option(
        None, "--gpu", help="A name of the hardware table, as h100-80gb; cpu without GPUs."
    ),
    layout: str | None = typer.Option(
        None, "--layout", help="Judge this layout: tp=8,dp=32,micro_batch=1,accumulation=2,..."
    ),
    seq: str | None = typer.Option(
        None, "--seq", metavar="N,N", help="Compare the best layouts at these sequence lengths instead."
    ),
    price: float | None = typer.Option(None, "--price", min=0, help="Price of a GPU-hour."),
    write: bool = typer.Option(
        False, "--write", help="Write plan.json and ds_config.json into the run folder."
    ),
    calibrate: bool = typer.Option(
        False,
        "--calibrate",
        help="Instead: fit the planner to finished runs, whose folders stand in the run file's place.",
    ),
    as_json: bool = AsJson,
) -> None:
    """Plan a run without a GPU: what fits, how fast, and why each other layout was not taken.

    Example: megatune plan run.yaml --nodes 4 --gpus-per-node 8 --gpu h100-80gb
    """
    if calibrate:
        from megatune.cli.calibrate import calibrate_runs

        calibrate_runs([run_file, *map(Path, overrides or [])], as_json=as_json)
        return
    from megatune.cli.plan import PlanOptions, plan_run

    options = PlanOptions(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu=gpu,
        layout=layout,
        lengths=seq,
        price_per_gpu_hour=price,
        write=write,
        as_json=as_json,
    )
    plan_run(run_file, overrides or [], options)


def train(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    allow_change: bool = typer.Option(
        False,
        "--allow-change",
        help="Go on from a checkpoint although settings that decide what is learnt have changed.",
    ),
) -> None:
    """Train: starts the ranks, here or over ssh, or is a rank of the job that torchrun, srun or mpirun started.

    Example: megatune train run.yaml train.learning_rate=2e-5 parallel.tp_size=2
    """
    before_torch()
    from megatune.cli.train import train_run

    sys.exit(train_run(run_file, overrides or [], allow_change=allow_change))


def verify(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    steps: int = typer.Option(10, "--steps", help="Optimizer steps to compare."),
    shrink: bool = typer.Option(False, "--shrink", help="Use a two-layer random model of the same family."),
    as_json: bool = AsJson,
) -> None:
    """Prove that the configured layout trains like one process: same loss, gradient norm and weights.

    Example: megatune verify run.yaml --shrink
    """
    before_torch()
    from megatune.cli.verify import verify_run

    sys.exit(verify_run(run_file, overrides or [], steps=steps, shrink=shrink, as_json=as_json))


def export(
    source: Path = typer.Argument(
        help="A run folder (its newest checkpoint) or a checkpoint folder.", metavar="RUN"
    ),
    target: Path = typer.Argument(help="Folder to write.", metavar="TARGET"),
    dtype: str = typer.Option("bf16", "--dtype", help="bf16, fp16 or fp32."),
) -> None:
    """Write a checkpoint as a plain Hugging Face folder.

    Example: megatune export runs/first exported --dtype bf16
    """
    from megatune.cli.export import export_run

    export_run(source, target, dtype)


def env() -> None:
    """Print versions and hardware, for bug reports.

    Example: megatune env
    """
    from megatune.launch.environment import environment_report

    print(environment_report())


def report(
    paths: list[Path] = typer.Argument(
        help="A run folder, or records of `megatune bench`.", metavar="RUN|RECORD.json..."
    ),
    picture: Path | None = typer.Option(
        None, "--picture", help="Draw the curve of every score of the run into this .png, .svg or .pdf."
    ),
    as_json: bool = AsJson,
) -> None:
    """Sum up a run from its metrics: scores before and after, speed, memory, curves. Or draw benchmark records.

    Example: megatune report runs/first --picture curves.svg
    """
    from megatune.cli.report import report_paths

    report_paths(paths, as_json=as_json, picture=picture)


def demo(overrides: list[str] | None = Overrides) -> None:
    """Fine-tune a real model on real dialogues here and now: no hub, no GPU needed, a few minutes.

    Example: megatune demo
    """
    before_torch()
    from megatune.cli.demo import run_demo

    sys.exit(run_demo(overrides or []))


def register(app: typer.Typer) -> None:
    """Add all commands to `app`."""
    for command in (demo, init, fetch, prepare, plan, train, verify, export, report, env):
        app.command()(command)
