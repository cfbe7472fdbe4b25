"""`megatune checkpoint convert`."""

from pathlib import Path
from typing import Any

from megatune.errors import ConfigError, ConvertError
from megatune.launch.checkpoints import MANIFEST
from megatune.launch.run_folder import RunFolder

DIRECTIONS = ("megatune", "deepspeed-universal")


def convert_checkpoint(source: Path, target: Path, *, to: str, model: Path | None, thaw: bool) -> None:
    """Convert into megatune's format, a run folder, or out of it."""
    if to not in DIRECTIONS:
        raise ConfigError(
            [f"--to is {to!r}. Use one of {', '.join(DIRECTIONS)}."], source="megatune checkpoint convert"
        )
    if to == "megatune":
        _to_megatune(source, target, model, thaw=thaw)
    else:
        _to_universal(source, target)


def _to_megatune(source: Path, target: Path, model: Path | None, *, thaw: bool) -> None:
    from megatune.checkpoint.convert.find import find_model, open_foreign
    from megatune.checkpoint.convert.target_model import describe_target
    from megatune.checkpoint.convert.to_megatune import Shared, write_megatune
    from megatune.train.identity import identity_hash

    if (source / MANIFEST).is_file() or any(RunFolder(source).checkpoints.glob(f"*/{MANIFEST}")):
        raise ConvertError(
            f"{source} is megatune's already. --to deepspeed-universal converts it for DeepSpeed; `megatune export` "
            "writes its model for transformers."
        )
    state = open_foreign(source)
    folder = model or find_model(source)
    if folder is None:
        raise ConvertError(
            f"{source} has no config.json beside it, so the model it belongs to is unknown. Give the model's "
            "folder: --model FOLDER."
        )
    described = describe_target(folder)
    identity = _identity(described, state.facts.optimizer)
    shared = Shared(
        training={"state": _training_state(state.facts.step), "identity": identity},
        config_hash=identity_hash(identity),
        thaw=thaw,
    )
    written = write_megatune(state, described, RunFolder(target).checkpoints, shared)
    print(
        f"converted {state.facts.folder} to {written}: {len(described.shapes)} parameters after step "
        f"{state.facts.step}\n"
        "Its data, seed and schedule are unknown to megatune, so a run must accept that they differ; the data "
        f"starts from its first row:\n  megatune train RUN.yaml --allow-change train.output_dir={target}"
    )


def _training_state(step: int) -> dict[str, object]:
    from megatune.train.state import TrainingState
    from megatune.train.stopping import Patience

    return TrainingState(step=step, patience=Patience(None)).to_json()


def _identity(described: Any, optimizer: str) -> dict[str, str]:
    """What is known of the run that saved the checkpoint: what its tensors mean."""
    from megatune.train.identity import parameters_hash

    weights = {name: entry.to_json() for name, entry in described.entries().items()}
    return {"parameters": parameters_hash(weights), "train.optimizer": optimizer}


def _to_universal(source: Path, target: Path) -> None:
    from megatune.checkpoint.convert.to_universal import write_universal
    from megatune.cli.export import find_source

    written = write_universal(find_source(source), target)
    print(
        f"converted to {written}\n"
        'Load it with DeepSpeed: "checkpoint": {"load_universal": true} in its configuration and '
        f'engine.load_checkpoint("{target}").'
    )
