"""Processor time of an AdamW update by torch's kernels: `python benchmarks/optimizers.py [MODEL] [ROUNDS]`.

One JSON line a kernel, for the parameters of a model of benchmarks/models in fp32 on one thread: fused, as megatune
takes it, foreach, and one weight after another.
"""

import json
import statistics
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatune.bench.inputs import MODELS

KERNELS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "one by one": {"foreach": False}}
_WARMUP = 2


def made(shapes: list[torch.Size], options: dict[str, bool]) -> torch.optim.Optimizer:
    """AdamW on weights of these shapes, all with gradients."""
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return torch.optim.AdamW(weights, lr=1e-4, **options)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "llama-17m"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODELS / name))
    shapes = [weight.shape for weight in model.parameters()]
    optimizers = {kernel: made(shapes, options) for kernel, options in KERNELS.items()}
    taken: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for _ in range(_WARMUP + rounds):
        for kernel, optimizer in optimizers.items():
            started = time.process_time()
            optimizer.step()
            taken[kernel].append(time.process_time() - started)
    for kernel, seconds in taken.items():
        kept = seconds[_WARMUP:]
        entry = {"kernel": kernel, "median_cpu_s": statistics.median(kept), "range_s": [min(kept), max(kept)]}
        print(json.dumps({"model": name, **entry}))


if __name__ == "__main__":
    main()
