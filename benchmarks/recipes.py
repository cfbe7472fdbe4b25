"""Scores of the recipes before and after training, with several seeds.

    megatune fetch topics && megatune fetch trivia && megatune fetch dialogue
    python benchmarks/recipes.py topics=42,43,44 topics-classifier=42,43,44 trivia=42 dialogue=42

Trains `assets/RECIPE.yaml` once for each seed, in RUNS/RECIPE-SEED, and without saving; a run that has ended is not
made again. Every run is kept as one JSON line of `--results`, whatever came of it, in place of an older one of the same
recipe and seed; the table gives the first seed of each recipe, with its bootstrap interval, and the range over all.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatune.bench.record import machine
from megatune.files import write_text_atomic
from megatune.launch.environment import source_commit
from megatune.report.metrics import read_metrics

SHOWN = {
    "topics": ("accuracy", "macro_f1"),
    "topics-classifier": ("accuracy", "macro_f1"),
    "trivia": ("exact_match", "f1"),
    "dialogue": ("perplexity",),
    "ner": ("f1",),
    "summarization": ("rougeL",),
    "translation": ("bleu",),
}
"""The scores of each recipe that the table has; the record has all."""
MEGATUNE = Path(sys.executable).with_name("megatune")


def main() -> None:
    """Train what has not been trained, keep the record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE=SEED,SEED", type=_recipe)
    parser.add_argument("--assets", type=Path, default=Path("assets"))
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/recipes-cpu.jsonl"))
    arguments = parser.parse_args()
    records = _kept(arguments.results)
    for recipe, seeds in arguments.recipes:
        for seed in seeds:
            print(f"{recipe}, seed {seed}", file=sys.stderr, flush=True)
            records[recipe, seed] = scored(recipe, seed, arguments.assets, arguments.runs)
            text = "".join(json.dumps(record) + "\n" for record in records.values())
            write_text_atomic(arguments.results, text)
    print(table(list(records.values())))


def _kept(results: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return {(record["recipe"], record["seed"]): record for record in map(json.loads, lines)}


def _recipe(text: str) -> tuple[str, list[int]]:
    name, _, seeds = text.partition("=")
    if name not in SHOWN:
        raise argparse.ArgumentTypeError(f"{name!r} is no recipe; recipes are {', '.join(SHOWN)}")
    return name, [int(seed) for seed in (seeds or "42").split(",")]


def scored(recipe: str, seed: int, assets: Path, runs: Path) -> dict[str, Any]:
    """The scores before and after of one run, which is made unless it has ended already."""
    folder = runs / f"{recipe}-{seed}"
    metrics = folder / "metrics.jsonl"
    command = ["train", f"{assets}/{recipe}.yaml", f"train.seed={seed}", f"train.output_dir={folder}"]
    command += ["checkpoint.save_at_end=false", "checkpoint.export_at_end=false"]
    if not _has_ended(metrics):
        shutil.rmtree(folder, ignore_errors=True)  # without checkpoints a run cannot go on
        subprocess.run([str(MEGATUNE), *command], check=True, stdout=sys.stderr)
    place = {"machine": machine(), "commit": source_commit()}
    return {"recipe": recipe, "seed": seed, **place, "command": ["megatune", *command], **_scores(metrics)}


def _has_ended(metrics: Path) -> bool:
    return metrics.exists() and any(
        entry["event"] == "stop" and entry["exit_code"] == 0 for entry in read_metrics(metrics)
    )


def _scores(metrics: Path) -> dict[str, Any]:
    """Of the test split, or of the validation rows where there is none."""
    entries = read_metrics(metrics)
    evals = [entry for entry in entries if entry["event"] == "eval"]
    split = "test" if any(entry["split"] == "test" for entry in evals) else "validation"
    first, *_, last = (_score(entry) for entry in evals if entry["split"] == split)
    steps = [entry for entry in entries if entry["event"] == "step"]
    return {
        "split": split,
        "steps": len(steps),
        "train_s": round(sum(entry["step_seconds"] for entry in steps), 1),
        "evaluate_s": round(sum(entry["seconds"] for entry in evals), 1),
        "before": first,
        "after": last,
    }


def _score(entry: dict[str, Any]) -> dict[str, Any]:
    with_perplexity = {"loss": entry["loss"], "perplexity": entry["perplexity"], **entry["metrics"]}
    return {
        "step": entry["step"],
        "target_tokens": entry["target_tokens"],
        "scores": {name: value for name, value in with_perplexity.items() if value is not None},
        "intervals": entry["intervals"],
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each recipe its first seed, and the range over all."""
    lines = ["| recipe | score | before | after | all seeds, before | after |", "|---|---|---|---|---|---|"]
    for recipe in dict.fromkeys(record["recipe"] for record in records):
        runs = [record for record in records if record["recipe"] == recipe]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        for metric in SHOWN[recipe]:
            first = [_with_interval(runs[0][when], metric) for when in ("before", "after")]
            ranges = [
                _range([run[when]["scores"][metric] for run in runs]) if len(runs) > 1 else ""
                for when in ("before", "after")
            ]
            lines.append(f"| {recipe}, seeds {seeds} | {metric} | {' | '.join([*first, *ranges])} |")
    return "\n".join(lines)


def _with_interval(found: dict[str, Any], metric: str) -> str:
    value = f"{found['scores'][metric]:.3f}"
    if metric not in found["intervals"]:
        return value
    low, high = found["intervals"][metric]
    return f"{value} ({low:.3f} to {high:.3f})"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
