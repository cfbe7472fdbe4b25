"""The run file: its keys, how it is loaded and checked, and what it asks for as a batch.

Read in this order: `run` and `sections` (the keys), `load`, `settings`, `check`.
"""

from megatune.config.batch import BatchShape, resolve_batch
from megatune.config.check import check_run, layout_problems
from megatune.config.initial import initial_run_file
from megatune.config.load import LoadedRun, load_run
from megatune.config.parallel import ParallelSection
from megatune.config.render import path_override, resolved_values, resolved_yaml
from megatune.config.run import Precision, Run, run_schema
from megatune.config.sections import (
    CheckpointSection,
    DataSection,
    EvaluateSection,
    LaunchSection,
    ModelSection,
    Task,
    TrainSection,
)
from megatune.config.slurm import SlurmSection
from megatune.config.source import DataSource

__all__ = [
    "BatchShape",
    "CheckpointSection",
    "DataSection",
    "DataSource",
    "EvaluateSection",
    "LaunchSection",
    "LoadedRun",
    "ModelSection",
    "ParallelSection",
    "Precision",
    "Run",
    "SlurmSection",
    "Task",
    "TrainSection",
    "check_run",
    "initial_run_file",
    "layout_problems",
    "load_run",
    "path_override",
    "resolve_batch",
    "resolved_values",
    "resolved_yaml",
    "run_schema",
]
