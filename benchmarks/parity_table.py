"""Write docs/parity.md: how far every tiny family at every layout is from one plain process.

    python benchmarks/parity_table.py [--output docs/parity.md] [--steps 10]

The models, steps and worlds are those of tests/model/test_family_parity.py; here the differences are
kept instead of judged alone. Exits 1 when one is beyond the test's tolerance. About four minutes on two cores.
"""

import argparse
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
# As in the tests: one thread a rank, no hub. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
LIMITS = (1e-5, 1e-4, 1e-5)
"""Of the loss and the gradient norm (relative, worst step) and of the weights (absolute, worst element)."""

Differences = tuple[float, float, float]


def measure(steps: int) -> dict[tuple[str, int, int], Differences]:
    """(family, tp, dp) -> largest differences from the plain process after `steps` optimizer steps."""
    from parity_steps import train_traces
    from tiny_models import TINY, write_tiny_model
    from worlds import Worlds

    worlds = Worlds()
    found: dict[tuple[str, int, int], Differences] = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: str(write_tiny_model(name, Path(folder))) for name in TINY}
        try:
            references = worlds.run(1, train_traces, folders, 0, 0, steps)[0]
            for tp, dp in LAYOUTS:
                traces = worlds.run(tp * dp, train_traces, folders, tp, dp, steps)[0]
                found |= {key: differences(trace, references[key[0], 0, 0]) for key, trace in traces.items()}
                print(f"tp={tp} dp={dp} done", file=sys.stderr)
        finally:
            worlds.close()
    return found


def differences(trace: Any, reference: Any) -> Differences:
    """Worst relative difference of a loss and of a gradient norm, worst difference of a weight."""
    (losses, norms, weights), (expected_losses, expected_norms, expected_weights) = trace, reference
    assert weights.keys() == expected_weights.keys(), "the layouts have the same weights"
    return (
        worst_relative(losses, expected_losses),
        worst_relative(norms, expected_norms),
        max(float(abs(weights[name] - expected_weights[name]).max()) for name in weights),
    )


def worst_relative(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def is_equal(found: Differences) -> bool:
    return all(value <= limit for value, limit in zip(found, LIMITS, strict=True))


def render(found: dict[tuple[str, int, int], Differences], steps: int) -> str:
    """The page: a table a layout would be long, so a row is a family and a cell holds three numbers."""
    families = list(dict.fromkeys(family for family, _, _ in found))
    head = " | ".join(f"tp={tp} dp={dp}" for tp, dp in LAYOUTS)
    lines = [
        "# Every family, every layout, against one process",
        "",
        f"Each cell: the largest difference from one plain process without DeepSpeed over {steps} optimizer steps in",
        "fp32: of the loss (relative) / of the gradient norm (relative) / of the weights after the last step",
        f"(absolute, worst element). Allowed: {' / '.join(f'{limit:.0e}' for limit in LIMITS)}. **Bold** is beyond it.",
        "",
        "The models have two layers, perturbed weights and odd sizes on purpose (5 and 10 heads, a vocabulary of 101,",
        "97 features): counts that the degree does not divide. The optimizer is SGD with momentum at a learning "
        "rate of",
        "0.1, which turns an error of a gradient into one of the weights, as Adam's normalisation would not. "
        "ZeRO stage 3",
        "with fp32 masters throughout. Of gemma all ranks share one key-value head, as of Gemma-2B.",
        "",
        f"| family | {head} |",
        f"|---|{'---|' * len(LAYOUTS)}",
    ]
    for family in families:
        cells = [cell(found[family, tp, dp]) for tp, dp in LAYOUTS]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    return "\n".join(
        [
            *lines,
            "",
            f"Made with {packages} on CPU cores (gloo) by `python benchmarks/parity_table.py`; "
            "`tests/model/test_family_parity.py`",
            "holds every family to the same limits in every test run, at tp=2 dp=2 and tp=4 dp=1, and those whose "
            "layers are cut in a way of their own at all layouts. `megatune verify RUN.yaml` does it for your own "
            "model and layout.",
            "",
        ]
    )


def cell(found: Differences) -> str:
    text = " / ".join(f"{value:.0e}" for value in found)
    return text if is_equal(found) else f"**{text}**"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md")
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    found = measure(asked.steps)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(render(found, asked.steps), encoding="utf-8")
    print(f"{asked.output}: {sum(map(is_equal, found.values()))} of {len(found)} layouts within the limits")
    return 0 if all(map(is_equal, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
