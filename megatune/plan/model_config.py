"""A model's config.json, from where it lies already: nothing is fetched."""

import json
from pathlib import Path
from typing import Any

from megatune.config import Run
from megatune.errors import ModelError
from megatune.plan.shape import ModelShape, shape_from_config


def read_model_config(run: Run) -> dict[str, Any]:
    """config.json of the run's model: from its folder, or from the local cache of the hub. No network.

    Raises ModelError when it is in neither, is no JSON object, or describes no language model.
    """
    name = run.model.model_name_or_path
    path = Path(name) / "config.json"
    if not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, "config.json", revision=run.model.revision)
        except HFValidationError:
            cached = None  # a path that is not there, and no name of the hub
        if not isinstance(cached, str):
            raise ModelError(
                f"model.model_name_or_path: {name} is no folder here, and its config.json is not in the local cache "
                "of the hub. Give a folder that holds the model's config.json; a plan needs no weights."
            )
        path = Path(cached)
    config = read_config(path)
    shape_from_config(config, str(path))  # what is wrong in it is told with its path
    return _with_vocabulary(config, run)


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, which needs to hold no more than config.json. Raises ModelError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a Hugging Face model folder.")
    return shape_from_config(read_config(path), str(path))


def read_config(path: Path) -> dict[str, Any]:
    """A config.json. Raises ModelError when it cannot be read or is no JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, not a JSON object.")
    return config


def _with_vocabulary(config: dict[str, Any], run: Run) -> dict[str, Any]:
    """With as many embedding rows as the model will have at most: tokens to add may fit into spare ones."""
    if run.tokenizer is None:
        return config
    text = config.get("text_config") or config
    known = run.tokenizer.vocab_size if run.tokenizer.train else shape_from_config(config).vocab_size
    changed = {**text, "vocab_size": known + len(run.tokenizer.added)}
    return {**config, "text_config": changed} if config.get("text_config") else changed
