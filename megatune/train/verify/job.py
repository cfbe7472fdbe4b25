"""Run the reference and the layouts, one world after another, and compare what they left behind."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from megatune.config import LoadedRun, Run, resolve_batch
from megatune.errors import LaunchError, UserError
from megatune.launch.fork_server import rank_starts
from megatune.launch.local import run_ranks
from megatune.launch.processes import Start, module_command
from megatune.launch.ranks import extension_environment
from megatune.launch.run_folder import RunFolder
from megatune.model.heads import HeadSpec
from megatune.plan.layout_keys import value_of
from megatune.train.inputs import Inputs, open_tokenizer
from megatune.train.job import check_and_prepare, ready_ops
from megatune.train.verify.compare import TOLERANCES, Row, Tolerance, compare
from megatune.train.verify.model import shrink, without_dropout
from megatune.train.verify.task import WorldTask, write_task
from megatune.train.verify.trace import Trace, read_trace
from megatune.units import format_duration

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The answer of `megatune verify`."""

    rows: list[Row]
    steps: int
    tolerance: Tolerance
    reference: str
    """What the layouts were compared with: the description of its engine."""
    notes: list[str]
    """What differs from the run that is verified."""

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def as_object(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "schema": SCHEMA,
            "rows": [asdict(row) for row in self.rows],
            "passed": self.passed,
            "steps": self.steps,
            "tolerance": asdict(self.tolerance),
            "reference": self.reference,
            "notes": self.notes,
        }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One world: how many ranks, and how the run's global batch lies on them."""

    name: str
    tensor_parallel: int
    num_ranks: int
    micro: int
    accumulation: int
    is_reference: bool = False


def verify_job(
    loaded: LoadedRun,
    run_file: Path,
    overrides: Sequence[str],
    *,
    num_steps: int,
    shrunken: bool,
    progress: Callable[[str], None],
) -> Verification:
    """Train the first `num_steps` steps of the run's data in every layout and compare them.

    Logs of the worlds stay in the run folder; weights are compared through files that do not. Raises
    UserError when the run or the machine does not allow it, LaunchError when a world fails.
    """
    folder = RunFolder(loaded.run.train.output_dir)
    with ExitStack() as stack:
        start = stack.enter_context(rank_starts(["megatune.train.verify.world"]))
        run, num_ranks, inputs = check_and_prepare(loaded, folder)
        planned = [f"{key}={value_of(run, key)}" for key in loaded.auto]  # the worlds are given values
        global_rows = resolve_batch(run, num_ranks // run.parallel.tp_size).global_sequences
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".verify-", dir=folder.path))
        model, notes = _prepare_model(run, inputs, Path(scratch), shrunken)
        worlds = _Worlds(
            run=run,
            run_file=run_file,
            # A shrunken model has its weights written down, also where the run draws them.
            overrides=[*overrides, *planned, *(["model.initialize=pretrained"] if shrunken else [])],
            model=model,
            head=inputs.source.head,
            prepared=inputs.train.folder,
            num_steps=num_steps,
            global_rows=global_rows,
            scratch=Path(scratch),
            folder=folder,
            progress=progress,
            start=start,
        )
        rows, reference = worlds.compare_all(_layouts(run, num_ranks, global_rows))
    return Verification(
        rows=rows,
        steps=num_steps,
        tolerance=TOLERANCES[run.precision],
        reference=reference.engine,
        notes=[*notes, *_notes_on_steps(run, reference)],
    )


def _prepare_model(run: Run, inputs: Inputs, scratch: Path, shrunken: bool) -> tuple[Path, list[str]]:
    folder = scratch / "model"
    if shrunken:
        tokenizer = open_tokenizer(run, inputs.source)
        changes = shrink(inputs.source, tokenizer, folder, run.train.seed)
        return folder, [f"a shrunken model with random weights: {', '.join(changes) or 'no size changed'}"]
    model, dropped = without_dropout(inputs.source, folder)
    return model, [f"dropout is off ({', '.join(dropped)} set to 0)"] if dropped else []


def _notes_on_steps(run: Run, reference: Trace) -> list[str]:
    notes = []
    if run.precision == "fp16":
        notes.append("the reference computes in fp32: plain torch has no loss scale")
    if not any(reference.learning_rates):
        notes.append("the learning rate was 0 in all these steps (warm-up): the weights did not move")
    return notes


def _layouts(run: Run, num_ranks: int, global_rows: int) -> list[Layout]:
    """The reference, then ZeRO alone when the layout has tensor parallelism too, then the layout."""
    degree, micro = run.parallel.tp_size, run.train.per_device_train_batch_size
    made = [_layout("reference", 1, 1, global_rows, micro, is_reference=True)]
    if degree > 1:
        # As many ranks as the global batch can be divided over: at least the layout's data-parallel ones.
        data_parallel = math.gcd(num_ranks, global_rows)
        made.append(_layout(f"tp=1,dp={data_parallel}", 1, data_parallel, global_rows, micro))
    name = f"tp={degree},dp={num_ranks // degree}"
    return [*made, _layout(name, degree, num_ranks, global_rows, micro)]


def _layout(
    name: str, degree: int, num_ranks: int, global_rows: int, micro: int, *, is_reference: bool = False
) -> Layout:
    rows = global_rows // (num_ranks // degree)
    largest = next(size for size in range(min(micro, rows), 0, -1) if rows % size == 0)
    return Layout(
        name=name,
        tensor_parallel=degree,
        num_ranks=num_ranks,
        micro=largest,
        accumulation=rows // largest,
        is_reference=is_reference,
    )


@dataclass(frozen=True, kw_only=True)
class _Worlds:
    """What all worlds of one verification share."""

    run: Run
    run_file: Path
    overrides: list[str]
    model: Path
    head: HeadSpec | None
    prepared: Path
    num_steps: int
    global_rows: int
    scratch: Path
    folder: RunFolder
    progress: Callable[[str], None]
    start: Start

    def compare_all(self, layouts: list[Layout]) -> tuple[list[Row], Trace]:
        """A row a layout, and the trace of the reference, which is the first of them."""
        environment = extension_environment(ready_ops(self.run))
        reference_folder, reference = self._train(layouts[0], environment)
        rows = []
        for layout in layouts[1:]:
            found_in, trace = self._train(layout, environment)
            tolerance = TOLERANCES[self.run.precision]
            rows.append(compare(layout.name, found_in, trace, reference_folder, reference, tolerance))
        return rows, reference

    def _train(self, layout: Layout, environment: dict[str, str]) -> tuple[Path, Trace]:
        started = time.monotonic()
        trace_folder = self.scratch / layout.name
        trace_folder.mkdir()
        task = trace_folder / "task.json"
        write_task(task, self._task(layout, trace_folder))
        result = run_ranks(
            module_command("megatune.train.verify.world", str(task)),
            num_ranks=layout.num_ranks,
            log_dir=self.folder.logs / f"verify-{layout.name}",
            extra_env=environment,
            echo_rank=None,
            start=self.start,
        )
        if result.exit_code == UserError.exit_code:
            raise UserError(result.failure_text.removeprefix("megatune: "))
        if result.exit_code != 0:
            raise LaunchError(f"{layout.name}: {result.failure_text or 'the ranks were stopped'}")
        trace = read_trace(trace_folder)
        seconds = format_duration(time.monotonic() - started)
        again = f", {trace.skipped} overflows" if trace.skipped else ""
        self.progress(f"{layout.name}: {self.num_steps} steps in {seconds}{again}: {trace.engine}")
        return trace_folder, trace

    def _task(self, layout: Layout, trace: Path) -> WorldTask:
        return WorldTask(
            run_file=str(self.run_file),
            overrides=[*self.overrides, f"parallel.tp_size={json.dumps(layout.tensor_parallel)}"],
            is_reference=layout.is_reference,
            model=str(self.model),
            head=None if self.head is None else asdict(self.head),
            prepared=str(self.prepared),
            num_steps=self.num_steps,
            micro=layout.micro,
            accumulation=layout.accumulation,
            global_sequences=self.global_rows,
            trace=str(trace),
        )
