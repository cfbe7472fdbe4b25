"""`megatune train` outside a launched job: check everything, prepare the data, start the ranks, sum up."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from megatune.config import LoadedRun, Run, resolve_batch
from megatune.data.quality_picture import draw_or_tell
from megatune.engine.accelerator import refuse_missing_toolkit, refuse_unusable_gpus
from megatune.engine.world import check_degrees
from megatune.errors import ConfigError
from megatune.launch.checkpoints import newest_saved_step
from megatune.launch.devices import count_gpus, ranks_here
from megatune.launch.extensions import ensure_built, extension_folder, needed_ops
from megatune.launch.fork_server import rank_starts
from megatune.launch.launchers import start_command
from megatune.launch.local import run_ranks
from megatune.launch.local_disk import disk_problems
from megatune.launch.local_hangs import HangRule
from megatune.launch.planned_run import plan_start
from megatune.launch.processes import Start, module_command
from megatune.launch.progress import run_with_restarts
from megatune.launch.ranks import extension_environment, one_request, other_nodes
from megatune.launch.run_folder import RunFolder
from megatune.launch.verdict import RanksResult
from megatune.model.source import ModelSource, stored_dtype
from megatune.plan.ds_config import read_policy
from megatune.plan.validity import start_problems
from megatune.train.inputs import Inputs, open_model, prepare_inputs
from megatune.train.start_model import ready_model

PRELOAD = ("megatune.train.rank",)
"""What the ranks of a training run import."""


def train_job(loaded: LoadedRun, arguments: Sequence[str], start: Start | None = None) -> int:
    """Start the ranks, here or over ssh, and wait for them. Returns the exit code.

    `arguments`: the run file and overrides, given to each rank again. Everything that can be wrong
    with the user's input is found here, once, before any rank exists. `start`: as `rank_starts(PRELOAD)`
    gives it, where this process has computed something before.
    """
    run = loaded.run
    if run.launch.launcher == "ssh":
        from megatune.train.ssh_job import ssh_job  # it takes its checks from here

        return ssh_job(loaded, arguments)
    with nullcontext(start) if start else rank_starts(PRELOAD) as starts:
        return _train_here(loaded, arguments, starts)


def _train_here(loaded: LoadedRun, arguments: Sequence[str], start: Start) -> int:
    folder = RunFolder(loaded.run.train.output_dir)
    if idle_nodes := other_nodes():
        print(
            f"note: the job has {idle_nodes} node(s) more, which stand idle: these ranks are all on this one. `srun "
            "megatune train ...` starts a rank for each task of the job.",
            file=sys.stderr,
        )
    run, num_ranks, _ = check_and_prepare(loaded, folder)
    limit_s = run.health.hang_timeout_s
    extra_env = {**extension_environment(ready_ops(run)), **one_request()}

    def run_once() -> RanksResult:
        return run_ranks(
            module_command("megatune", "train", *arguments),
            num_ranks=num_ranks,
            log_dir=folder.logs,
            extra_env=extra_env,
            hang_rule=HangRule(folder=folder, limit_s=limit_s) if limit_s else None,
            start=start,
        )

    result = run_with_restarts(
        run_once,
        max_restarts=run.launch.max_restarts,
        checkpoints=folder.checkpoints,
        is_new_run=run.checkpoint.resume != "auto",
    )
    if result.failure_text:
        print(result.failure_text, file=sys.stderr)
    return result.exit_code


def check_and_prepare(loaded: LoadedRun, folder: RunFolder) -> tuple[Run, int, Inputs]:
    """The run without `auto`, the number of ranks, and their data, once everything that the user can have got
    wrong is checked."""
    _refuse_other_machines(loaded.run)
    problems = disk_problems(loaded.run)
    if problems:
        raise ConfigError(problems)
    num_ranks = choose_num_ranks(loaded.run)
    run, inputs = prepare_for(loaded, folder, num_nodes=1, ranks_per_node=num_ranks, num_ranks=num_ranks)
    return run, num_ranks, inputs


def prepare_for(
    loaded: LoadedRun, folder: RunFolder, *, num_nodes: int, ranks_per_node: int, num_ranks: int
) -> tuple[Run, Inputs]:
    """The run as the first rank will plan it and its data, once what the user can have got wrong is checked."""
    source = _read_model(loaded.run) if loaded.auto else None
    run = loaded.run
    if source is not None:
        planned = plan_start(loaded, source.config_dict(), num_nodes=num_nodes, ranks_per_node=ranks_per_node)
        run = planned.loaded.run
    batch = resolve_batch(run, num_ranks // run.parallel.tp_size)
    source = source or _read_model(run)
    problems = start_problems(run, batch, read_policy(run.deepspeed), source.config_dict(), source.shape)
    if problems:
        raise ConfigError(problems)
    if run.model.initialize == "pretrained":
        stored_dtype(
            source.weights_folder
        )  # reads the headers: no weights, or broken files, are found before the data
    folder.create()
    inputs = prepare_inputs(run, folder)
    draw_or_tell(inputs.splits, folder.data_picture)
    return run, inputs


def _read_model(run: Run) -> ModelSource:
    """The model as it is trained: with the tokens that the run adds or trains."""
    ready_model(run)
    return open_model(run)


def ready_ops(run: Run) -> Path | None:
    """Compile the ops that `run` needs, unless they are there. The folder they are in; None without any.

    Raises ConfigError where this machine cannot compile one for GPUs.
    """
    ops = needed_ops(run, read_policy(run.deepspeed))
    if not ops:
        return None
    refuse_missing_toolkit(ops)
    build = extension_folder()
    ensure_built(module_command("megatune.engine.build_ops", *ops), build)
    return build


def choose_num_ranks(run: Run) -> int:
    """Ranks on this machine, as `ranks_here` counts them.

    Raises ConfigError when there are fewer GPUs, when torch cannot use them, or when tp_size does not
    divide the ranks.
    """
    asked, degree = run.launch.nproc_per_node, run.parallel.tp_size
    gpus = count_gpus()
    refuse_unusable_gpus(gpus)
    num_ranks = ranks_here(asked, degree, num_gpus=gpus)
    if gpus and num_ranks > gpus:
        raise ConfigError(
            [
                f"launch.nproc_per_node = {num_ranks}, but this machine has {gpus} GPU(s). Use {gpus} or less, or auto."
            ]
        )
    check_degrees(num_ranks, degree)
    return num_ranks


def _refuse_other_machines(run: Run) -> None:
    if run.launch.nodes > 1:
        torchrun = start_command(
            "torchrun", run_file="RUN.yaml", num_nodes=run.launch.nodes, in_allocation=False
        )
        raise ConfigError(
            [
                f"launch.nodes is {run.launch.nodes}, and this command starts ranks on this machine only. Hand the "
                "run to Slurm with `megatune submit RUN.yaml`, name the hosts in launch.hostfile for "
                f"launch.launcher=ssh, or start it on each node with `{torchrun}`."
            ]
        )


def interrupted(run: Run, arguments: Sequence[str]) -> str:
    """What to tell the user of a run that stopped early: the command that goes on from what it saved."""
    newest = newest_saved_step(RunFolder(run.train.output_dir).checkpoints)
    resume = [] if run.checkpoint.resume == "auto" or newest < 0 else ["checkpoint.resume=auto"]
    command = shlex.join(["megatune", "train", *arguments, *resume])
    if not run.checkpoint.save_at_end:
        lost = "stopped early, and not saved: checkpoint.save_at_end is false"
        return lost if newest < 0 else f"{lost}. Go on from step {newest} with: {command}"
    if newest < 0:
        return f"stopped before the first step: there is nothing to save yet. Start again with: {command}"
    return f"stopped early and saved in {run.train.output_dir}. Go on with: {command}"
