"""Write docs/families.md: which causal types of the installed transformers train on two ranks like on one.

    python benchmarks/other_families.py [--output docs/families.md] [--only NAME ...]

A tiny model of every type that AutoModelForCausalLM knows (tests/other_models.py) takes three steps as plain torch and
under ZeRO stage 3 on two ranks. Exits 1 when one is beyond the limits after one step. About ten minutes on two cores.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parity_table import LIMITS, ROOT, differences, is_equal  # sets what tests set, before torch is imported

sys.path.insert(0, str(ROOT / "tests" / "evaluate"))
STEPS = 3
_MASKS_GIVEN = "given masks"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one type."""

    name: str
    found: tuple[float, float, float] | None = None
    """Differences from one process, as in parity_table."""
    first_step: tuple[float, float, float] | None = None
    """The same after one step; of those beyond the limits alone."""
    packing: str = ""
    problem: str = ""


def try_all(names: Iterable[str]) -> list[Outcome]:
    """Train a tiny model of each type; one that fails or hangs does not hold up the others."""
    from worlds import Worlds

    with tempfile.TemporaryDirectory() as folder:
        worlds, outcomes = Worlds(), []
        try:
            for name in names:
                outcomes.append(try_one(name, Path(folder), worlds))
                print(f"{name}: {outcomes[-1].problem or outcomes[-1].found}", file=sys.stderr)
        finally:
            worlds.close()
    return outcomes


def try_one(name: str, folder: Path, worlds: Any) -> Outcome:
    from other_models import write_other_model
    from reach_cases import pack_models

    try:
        path = {name: str(write_other_model(name, folder))}
    except Exception as error:
        return Outcome(name=name, problem=f"no tiny model: {first_line(error)}")
    try:
        packed = worlds.run(1, pack_models, path, 0)[0][name]
        if not packed.reach.is_causal:
            return Outcome(name=name, problem="not causal as it is (an encoder without `is_decoder`)")
        found = compared(name, path, worlds, STEPS)
        first = None if is_equal(found) else compared(name, path, worlds, 1)
    except AssertionError as error:  # a rank's error, or that it hangs
        return Outcome(name=name, problem=last_line(error))
    masks = _MASKS_GIVEN if "masks that megatune gives" in packed.answer else "yes"
    packing = "refused" if packed.is_refused else masks
    return Outcome(name=name, found=found, first_step=first, packing=packing)


def compared(name: str, path: dict[str, str], worlds: Any, steps: int) -> tuple[float, float, float]:
    from parity_steps import train_traces

    plain = worlds.run(1, train_traces, path, 0, 0, steps)[0][name, 0, 0]
    divided = worlds.run(2, train_traces, path, 1, 2, steps)[0][name, 1, 2]
    return differences(divided, plain)


def words(found: tuple[float, float, float]) -> str:
    text = " / ".join(f"{value:.0e}" for value in found)
    return text if is_equal(found) else f"**{text}**"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]


def render(outcomes: list[Outcome]) -> str:
    """The page: what trains, with its differences, then what could not be tried or is refused."""
    trained = [one for one in outcomes if one.found is not None]
    others = [one for one in outcomes if one.found is None]
    alike = sum(is_equal(one.found) for one in trained if one.found)
    limits = " / ".join(f"{limit:.0e}" for limit in LIMITS)
    lines = [
        "# Any causal language model",
        "",
        f"`AutoModelForCausalLM` of transformers {version('transformers')} knows {len(outcomes)} types. A tiny model",
        f"(two layers, perturbed weights) of {len(trained)} could be made and trained; {alike} of them take {STEPS}",
        "steps under ZeRO stage 3 on two ranks like plain torch on one, in fp32, SGD with momentum at a learning rate",
        "of 0.1. Each row: the largest difference of the loss (relative) / the gradient norm (relative) / a weight",
        f"(absolute). Allowed: {limits}; **bold** is beyond it: where a ReLU or a choice of experts is decided by a",
        "rounding, what follows differs, and the first step tells more. Tensor parallelism is for the families of",
        "[parity.md](parity.md).",
        "",
        "*Packing*: whether packed documents stay apart, by the model's own masks or by masks that megatune gives it;",
        "where that cannot be, `data.packing=true` is refused and false trains the model.",
        "",
        "| type | differences | packing |",
        "|---|---|---|",
    ]
    for one in trained:
        assert one.found is not None
        first = f" (after one step {words(one.first_step)})" if one.first_step else ""
        lines.append(f"| {one.name} | {words(one.found)}{first} | {one.packing} |")
    lines += ["", "Not tried, or refused:", "", "| type | why |", "|---|---|"]
    lines += [f"| {one.name} | {one.problem.replace('|', '/')} |" for one in others]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    made = f"Made with {packages} on CPU cores by `python benchmarks/other_families.py`;"
    test = "`tests/model/test_other_families.py` holds the limits for a selection on every test run."
    return "\n".join([*lines, "", made, test, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "families.md")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these types alone")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    outcomes = try_all(asked.only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    asked.output.write_text(render(outcomes), encoding="utf-8")
    beyond = [one.name for one in outcomes if one.first_step and not is_equal(one.first_step)]
    print(
        f"{asked.output}: {len(outcomes)} types; beyond the limits after one step: {', '.join(beyond) or 'none'}"
    )
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
