"""`megatune lint`."""

from pathlib import Path

from megatune.config import Run, load_run
from megatune.errors import ConfigError
from megatune.launch.slurm.lint import Finding, LintFacts, lint_script
from megatune.report.tables import show


def lint_script_file(script: Path, run_file: Path | None, *, as_json: bool) -> int:
    """Print what is wrong with a batch script. Returns 1 when something is an error, else 0."""
    try:
        text = script.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{script} cannot be read: {error.strerror}."], source="megatune lint") from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{script} is no text: {error}."], source="megatune lint") from error
    facts = facts_of(load_run(run_file, []).run) if run_file else None
    findings = lint_script(text, facts)
    answer = {
        "schema": 1,
        "script": str(script),
        "findings": [finding.as_object() for finding in findings],
        "passed": passes(findings),
    }
    lines = [f"{script}: {finding}" for finding in findings] or [f"{script}: nothing found"]
    show(answer, *lines, as_json=as_json)
    return 0 if passes(findings) else 1


def passes(findings: list[Finding]) -> bool:
    """Whether nothing is an error."""
    return all(finding.severity != "error" for finding in findings)


def facts_of(run: Run) -> LintFacts:
    """What a run file says about the job of a script that trains it."""
    per_node = run.launch.nproc_per_node
    nodes = run.slurm.nodes if run.slurm else run.launch.nodes
    gpus = run.slurm.gpus_per_node if run.slurm else None
    ranks = gpus or (None if per_node == "auto" else per_node)
    return LintFacts(
        world_size=ranks * nodes if ranks else None,
        tensor_parallel=run.parallel.tp_size,
        gpus_per_node=gpus,
        save_steps=run.checkpoint.save_steps,
        has_checkpoints=run.checkpoint.save_steps is not None,
    )
