"""Export beside DeepSpeed's zero_to_fp32.py, same weights: `python benchmarks/export.py MODEL [RUNS]`.

A bare DeepSpeed engine trains MODEL (a Hugging Face folder) for one step on two ranks under ZeRO-3 and saves;
`megatune checkpoint convert` makes a checkpoint of megatune of that, with the same fp32 weights on as many ranks.
Both programs then write its fp32 weights, in turn: megatune as safetensors, with every file of the checkpoint
hashed first, zero_to_fp32.py as pickles (with --safe_serialization it refuses models with a tied head). For
each: wall time, CPU time, peak resident memory of the process, and those of a Python that only imports torch.
The weights are compared at the end.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bare_deepspeed import trained_for_a_step

from megatune.bench.record import machine

_RANKS = 2


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak resident bytes of `command`."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        complaint = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} failed:\n{complaint[-2000:]}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def save_with_deepspeed(model_folder: str, target: str) -> None:
    """What each rank of torchrun does: one step, one save."""
    with trained_for_a_step(model_folder) as engine:
        engine.save_checkpoint(target)


def is_equal(ours: Path, theirs: Path) -> bool:
    """Whether two folders hold the same fp32 tensors (theirs has a tied head under both names)."""
    import torch
    from safetensors.torch import load_file

    held = {name: value for path in ours.glob("*.safetensors") for name, value in load_file(path).items()}
    found = {name: value for path in theirs.glob("*.bin") for name, value in torch.load(path).items()}
    return len(held) > 0 and all(torch.equal(value, found[name]) for name, value in held.items())


def summary(name: str, runs: list[dict[str, float]]) -> dict[str, object]:
    return {
        "program": name,
        "runs": len(runs),
        **{
            f"{key.rpartition('_')[0]}_median_{key.rpartition('_')[2]}": round(
                statistics.median(run[key] for run in runs), 3
            )
            for key in runs[0]
        },
        "wall_range_s": [round(pick(run["wall_s"] for run in runs), 3) for pick in (min, max)],
    }


def main() -> None:
    """Print a JSON record of the machine, then one a program, then the ratios."""
    if sys.argv[1] == "save":
        save_with_deepspeed(*sys.argv[2:])
        return
    model, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    packages = ("megatune", "torch", "deepspeed", "safetensors")
    print(json.dumps({**machine(), "versions": {name: version(name) for name in packages}}))
    with tempfile.TemporaryDirectory() as scratch:
        bare, run, out = (Path(scratch) / name for name in ("deepspeed", "run", "out"))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(_RANKS)]
        measure([*torchrun, __file__, "save", model, str(bare)])
        megatune = [sys.executable, "-m", "megatune"]
        converting = measure([*megatune, "checkpoint", "convert", str(bare), str(run), "--model", model])
        print(json.dumps(summary("megatune checkpoint convert", [converting])))
        programs = {
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "zero_to_fp32.py": [
                *[sys.executable, str(bare / "zero_to_fp32.py"), str(bare)],
                str(out / "deepspeed"),
            ],
            "megatune export --dtype fp32": [
                *megatune,
                "export",
                str(run),
                str(out / "megatune"),
                "--dtype",
                "fp32",
            ],
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for _ in range(runs):
            for folder in out.glob("*"):
                subprocess.run(["rm", "-r", str(folder)], check=True)
            out.mkdir(exist_ok=True)
            for name, command in programs.items():
                found[name].append(measure(command))
        for name, measured in found.items():
            print(json.dumps(summary(name, measured)))
        base, theirs, ours = (
            [statistics.median(run[key] for run in measured) for key in measured[0]]
            for measured in found.values()
        )
        print(
            json.dumps(
                {
                    "same_weights": is_equal(out / "megatune", out / "deepspeed"),
                    "wall_ratio": round(theirs[0] / ours[0], 2),
                    "cpu_ratio": round(theirs[1] / ours[1], 2),
                    "peak_ratio": round(theirs[2] / ours[2], 2),
                    "peak_ratio_beyond_torch": round((theirs[2] - base[2]) / (ours[2] - base[2]), 2),
                }
            )
        )


if __name__ == "__main__":
    main()
