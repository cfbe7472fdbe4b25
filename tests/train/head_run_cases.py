"""What ranks of a test world do with the export of a run with a classifier head."""

from pathlib import Path
from typing import Any

import torch
from parity_steps import world_of

from megatune.engine.inference import InferenceEngine
from megatune.model.build import build_model
from megatune.model.forward import head_logits, model_arguments
from megatune.model.heads import HeadSpec
from megatune.model.source import ModelSource, open_source


def head_scores(folder: str, head: dict[str, Any], texts: list[list[int]], degree: int) -> list[torch.Tensor]:
    """The scores of each text by the ranks of a tensor-parallel group: (tokens, classes)."""
    world = world_of(degree)
    opened = open_source(Path(folder))
    source = ModelSource(
        folder=opened.folder, shape=opened.shape, config=opened.config, head=HeadSpec.from_fields(head)
    )
    engine = InferenceEngine(build_model(source, dtype=torch.float32, group=world.tensor_group), world)
    found = []
    with engine.evaluating():
        for ids in texts:
            tokens, places = torch.tensor([ids]), torch.arange(len(ids))[None]
            found.append(
                head_logits(engine.built.model(**model_arguments(engine.built.model, tokens, places)))[0]
            )
    return found
