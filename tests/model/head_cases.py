"""What ranks do in the tests of classifier heads: the same steps at any layout, and what is exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from parity_steps import Tokens, run_steps, tiny_run, world_of
from tiny_models import VOCABULARY

from megatune.config import BatchShape
from megatune.engine.dtypes import DTYPES
from megatune.engine.plain import PlainEngine
from megatune.engine.world import single_world
from megatune.engine.zero import ZeroEngine
from megatune.model.build import build_model
from megatune.model.heads import HeadSpec
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config
from megatune.tasks.labels import END, START

ROWS, TOKENS, PAD = 8, 16, 0
HEADS: dict[str, HeadSpec] = {
    "classification": HeadSpec(kind="classification", labels=("a", "b", "c"), pad_id=PAD),
    "weighted": HeadSpec(
        kind="classification", labels=("a", "b", "c"), pad_id=PAD, class_weights=(0.5, 2.0, 1.0)
    ),
    "multi-label": HeadSpec(kind="classification", labels=("a", "b", "c"), pad_id=PAD, multi_label=True),
    "multi-label, weighted": HeadSpec(
        kind="classification",
        labels=("a", "b", "c"),
        pad_id=PAD,
        multi_label=True,
        class_weights=(0.5, 3.0, 1.0),
    ),
    "ner": HeadSpec(kind="ner", labels=("O", "B-X", "I-X"), pad_id=PAD),
    "qa": HeadSpec(kind="qa", labels=("start", "end"), pad_id=PAD),
}


def head_batches(kind: str, steps: int) -> list[Tokens]:
    """The same global batches on every rank, padded at the right, with labels as prepared sets have them."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(steps):
        ids = torch.randint(1, VOCABULARY, (ROWS, TOKENS), generator=generator)
        labels = torch.full_like(ids, -100)
        for row in range(ROWS):
            length = 6 + (row * 5) % 11
            ids[row, length:] = PAD
            drawn = torch.randint(0, 3, (TOKENS,), generator=generator)
            if kind in ("classification", "weighted"):
                labels[row, length - 1] = drawn[0]
            elif kind.startswith("multi-label"):
                labels[row, length - 1] = drawn[0] + 4 * (row % 2)
            elif kind == "ner":
                labels[row, :length:2] = drawn[:length:2]
            else:
                labels[row, 2:length] = 0
                labels[row, 3] += START
                labels[row, 3 + int(drawn[0])] += END
        found.append(Tokens(ids, torch.arange(TOKENS).expand(ROWS, TOKENS), labels))
    return found


def engine_of(folder: str, kind: str, tp: int) -> Any:
    run = tiny_run(folder, max(1, tp))
    source = replace(open_source(Path(folder)), head=HEADS[kind])
    if tp == 0:
        built = build_model(source, dtype=DTYPES["fp32"], seed=run.train.seed)
        return PlainEngine(built, single_world(), run.train)
    world = world_of(tp)
    micro = ROWS // world.data_parallel
    batch = BatchShape(micro=micro, accumulation=1, global_sequences=ROWS)
    return ZeroEngine(run, source, world, make_ds_config(run, batch))


def head_traces(folders: dict[str, str], kinds: list[str], tp: int) -> dict[tuple[str, str], Any]:
    """(model, kind) -> losses, gradient norms and weights of three steps; tp=0 is one process."""
    found = {}
    for name, folder in folders.items():
        for kind in kinds:
            engine = engine_of(folder, kind, tp)
            # Without dropout: its masks differ between layouts by design.
            for module in engine.built.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            losses, norms = run_steps(engine, head_batches(kind, 3), accumulation=1, learning_rate=0.1)
            weights = {key: value.numpy().copy() for key, value in engine.weights(master=True)}
            found[name, kind] = losses, norms, weights
    return found


def losses_of_transformers(folder: str, kind: str) -> tuple[float, float]:
    """(our mean loss of a batch, that of the transformers class with its own labels), same weights."""
    engine = engine_of(folder, kind, 0)
    batch = head_batches(kind, 1)[0]
    spec = HEADS[kind]
    with engine.evaluating():
        ours = engine.loss(batch)
        if kind == "ner":
            theirs = engine.built.model(input_ids=batch.input_ids, labels=batch.labels).loss
            return float(ours / (batch.labels != -100).sum()), float(theirs)
        rows = batch.labels.amax(dim=1)
        if spec.multi_label:
            rows = ((rows[:, None] >> torch.arange(3)) & 1).float()
        theirs = engine.built.model(input_ids=batch.input_ids, labels=rows).loss
    return float(ours / ROWS), float(theirs)
