"""One run of one case, in processes of its own, and what it says about itself."""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatune.bench.child import output_of
from megatune.bench.inputs import Inputs
from megatune.bench.suite import SUITES, Case, Work
from megatune.config import path_override
from megatune.launch.devices import count_cpus, count_gpus
from megatune.launch.ports import reserve_port
from megatune.launch.processes import module_command
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.places import Place
from megatune.report.metrics import read_metrics, settled_steps

PEERS = SUITES.parent / "peers"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The timed steps of one run of a training case."""

    engine: str
    """What really trained, in its own words."""
    losses: list[float | None]
    """Of every step, the warm-up's too."""
    step_seconds: list[float]
    cpu_seconds: list[float]
    """Processor time of all ranks, a step."""
    tokens: list[int]
    """That went through the model, a step, without padding."""
    peak_allocated_bytes: int | None = None
    """Of a GPU's memory, the largest of any rank, as the two below. None: not measured."""
    peak_reserved_bytes: int | None = None
    """By the allocator of a GPU."""
    peak_rss_bytes: int | None = None
    """Resident host memory of the process, with what it shares with other ranks."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_memory_bytes(self) -> int | None:
        """What a case is compared by: allocated on a GPU, resident on a CPU."""
        return self.peak_rss_bytes if self.peak_allocated_bytes is None else self.peak_allocated_bytes

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / sum(self.step_seconds)

    @property
    def cpu_seconds_per_token(self) -> float:
        return sum(self.cpu_seconds) / sum(self.tokens)

    def to_object(self) -> dict[str, Any]:
        return asdict(self)


def measure(case: Case, work: Work, inputs: Inputs, *, timeout_s: float, place: Place) -> Measurement:
    """Run a training case once, at `place`. Raises LaunchError with the end of its output when it fails."""
    if case.peer is not None:
        return _measure_peer(case, work, inputs, timeout_s)
    return _measure_megatune(case, work, inputs, timeout_s, place)


def run_program(case: Case, *, timeout_s: float, temporary: Path) -> list[dict[str, Any]]:
    """Run a program case once: the JSON objects it prints. `temporary`: where it puts its temporary files."""
    assert case.program is not None
    script, *arguments = case.program
    command = [sys.executable, str(SUITES.parent / script), *arguments]
    text = output_of(command, case.name, timeout_s, temporary=temporary)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _measure_megatune(case: Case, work: Work, inputs: Inputs, timeout_s: float, place: Place) -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=inputs.run_file.parent))
    logs = folder / "logs"
    logs.mkdir()
    # Ranks of several nodes do not wait for one of them to prepare the rows.
    RunFolder(folder).share_prepared(RunFolder(inputs.run_file.with_suffix("")).prepared)
    overrides = [*(case.train or ()), path_override("train.output_dir", folder), *place.overrides()]
    python = place.launcher(folder.name, logs)
    command = module_command("megatune", "train", str(inputs.run_file), *overrides, python=python)
    try:
        output_of(command, case.name, timeout_s, threads=_threads(work), logs=logs)
    finally:
        place.end(folder.name)
    events = read_metrics(folder / "metrics.jsonl")
    run = next(event for event in events if event["event"] == "run")
    steps = [event for event in events if event["event"] == "step"]
    timed = settled_steps(events, work.warmup_steps)
    return Measurement(
        engine=run["details"]["engine"],
        losses=[step["loss"] for step in steps],
        step_seconds=[step["step_seconds"] for step in timed],
        cpu_seconds=[step["cpu_seconds"] for step in timed],
        tokens=[step["tokens"] for step in timed],
        **_peaks(steps, next(event for event in events if event["event"] == "stop")),
        details={
            **{name: run["details"][name] for name in ("attention", "loss", "norm")},
            "mfu": [step["mfu"] for step in timed],
            "startup_seconds": run["startup_seconds"],
            "load_seconds": run["load_seconds"],
        },
    )


def _peaks(steps: list[dict[str, Any]], stop: dict[str, Any]) -> dict[str, int | None]:
    """A step's peak is what the device held: of a GPU where its allocator reserved some."""
    reserved = [size for size in stop["peak_reserved_bytes_by_rank"] if size is not None]
    return {
        "peak_allocated_bytes": max(step["peak_memory_bytes"] for step in steps) if reserved else None,
        "peak_reserved_bytes": max(reserved, default=None),
        "peak_rss_bytes": max(stop["peak_rss_bytes_by_rank"]),
    }


def _measure_peer(case: Case, work: Work, inputs: Inputs, timeout_s: float) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="peer-", dir=inputs.run_file.parent) as folder:
        spec, answer = Path(folder, "spec.json"), Path(folder, "answer.json")
        spec.write_text(
            json.dumps(
                {
                    "peer": case.peer,
                    "model": str(inputs.model),
                    "data": str(inputs.documents),
                    "answer": str(answer),
                    "precision": work.precision,
                    "micro_batch": work.micro_batch,
                    "warmup_steps": work.warmup_steps,
                    "steps": work.steps,
                    "learning_rate": work.learning_rate,
                }
            )
        )
        torchrun = module_command("torch.distributed.run", f"--nproc_per_node={work.ranks}")
        with reserve_port() as port:
            program = [f"--master_port={port}", str(PEERS / "run_peer.py"), str(spec)]
            command = [*torchrun, *program]
            output_of(command, case.name, timeout_s, threads=_threads(work), temporary=Path(folder))
        found = json.loads(answer.read_text())
    rows = work.micro_batch * work.ranks
    return Measurement(**{"tokens": [rows * work.max_seq_length] * work.steps, **found})


def _threads(work: Work) -> int:
    """Of a rank: one where ranks compute on cores, else its share of the cores, for an optimizer on the host."""
    return max(1, count_cpus() // work.ranks) if count_gpus() else 1
