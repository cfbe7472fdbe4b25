"""What gathering weights once for all answers saves over gathering them at every token, under ZeRO-3.

    python -m benchmarks.generation --model assets/smollm2-135m --ranks 2 --tp 1
    python -m benchmarks.generation --model benchmarks/models/llama-17m --ranks 4 --tp 2

Prints a line of JSON with seconds and tokens/s of both, after one unmeasured round, in two interleaved rounds.
Both must write the same tokens, or the program fails. Models that keep their weights gathered anyway
(parallel.keep_gathered, docs/speed.md) gather none at a token: `--keep-gathered false` measures larger ones' way
on a small model.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatune.bench.record import machine
from megatune.config import BatchShape, Run
from megatune.engine.asked import answer_as_rank
from megatune.engine.make import make_engine
from megatune.engine.world import World
from megatune.evaluate.decoding import Decoding
from megatune.evaluate.generation import generate_answers
from megatune.launch.ask_ranks import ask_ranks
from megatune.launch.environment import source_commit
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config

ROUNDS = 2
ROWS_AT_ONCE = 4
PROMPT_TOKENS = 32
WAYS = ("once", "per_token")


def measure(question: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Seconds of every round of each way, on this rank with the others."""
    model = question["model"]
    has_weights = bool(list(Path(model).glob("*.safetensors")))
    run = Run.model_validate(
        {
            "model": {"model_name_or_path": model, "initialize": "pretrained" if has_weights else "random"},
            "data": {"train": "unused.jsonl"},
            "train": {"output_dir": "unused"},
            "parallel": {"tp_size": question["tensor_parallel"], "keep_gathered": question["keep_gathered"]},
            "precision": question["precision"],
        }
    )
    batch = BatchShape(micro=1, accumulation=1, global_sequences=world.data_parallel)
    engine = make_engine(run, open_source(Path(model)), world, make_ds_config(run, batch))
    vocabulary = engine.built.shape.vocab_size
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, vocabulary, (question["rows"], PROMPT_TOKENS), generator=generator).tolist()
    decoding = Decoding(max_new_tokens=question["new_tokens"])
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Any] = {}
    for number in range(ROUNDS + 1):
        for way in WAYS:
            world.barrier()
            started = time.monotonic()
            with engine.speaking(way) as speaker:  # type: ignore[arg-type]
                found[way] = generate_answers(
                    world,
                    speaker,
                    prompts,
                    decoding,
                    stop_ids=[vocabulary],
                    pad_id=0,
                    rows_at_once=ROWS_AT_ONCE,
                )
            if number:
                seconds[way].append(time.monotonic() - started)
    if found["once"] != found["per_token"]:
        raise SystemExit("the two ways wrote different tokens")
    return {"seconds": seconds, "engine": engine.description}


def main() -> None:
    """Start the ranks and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="assets/smollm2-135m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--keep-gathered", choices=("auto", "true", "false"), default="auto")
    arguments = parser.parse_args()
    question = {
        "model": arguments.model,
        "tensor_parallel": arguments.tp,
        "rows": arguments.rows,
        "new_tokens": arguments.new_tokens,
        "precision": arguments.precision,
        "keep_gathered": {"true": True, "false": False}.get(arguments.keep_gathered, "auto"),
    }
    found = ask_ranks("benchmarks.generation", question, num_ranks=arguments.ranks)
    tokens = arguments.rows * arguments.new_tokens
    medians = {way: statistics.median(found["seconds"][way]) for way in WAYS}
    record = {
        "machine": machine(),
        "commit": source_commit(),
        **question,
        "ranks": arguments.ranks,
        "engine": found["engine"],
        "seconds": found["seconds"],
        "tokens_per_second": {way: tokens / median for way, median in medians.items()},
        "times_faster_once": medians["per_token"] / medians["once"],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith("question.json"):
        sys.exit(answer_as_rank(Path(sys.argv[1]), measure))
    main()
