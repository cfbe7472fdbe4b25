"""Does DeepSpeed's own offload to a disk take the steps of its offload to host memory?

    python benchmarks/deepspeed_nvme.py --folder /scratch

Eight linear layers of a width, on one rank on the CPU, four steps under ZeRO-3 with each device. A weight whose
elements divide by 256 is written and read whole; of another DeepSpeed cuts the last elements off, and what follows
it in the sub-group lies at an offset that is not aligned. Needs a C++ compiler and libaio's headers (libaio-dev).
"""

import argparse
import os
import subprocess
import sys

WIDTHS = (512, 600)


def main() -> None:
    """Print one line a width and device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="/tmp", help="on the disk")
    parser.add_argument("--case", nargs=2, metavar=("DEVICE", "WIDTH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        losses = train(given.case[0], int(given.case[1]), given.folder)
        print(f"width {given.case[1]}, {given.case[0]:4}: {', '.join(f'{loss:.6e}' for loss in losses)}")
        return
    for width in WIDTHS:
        for device in ("cpu", "nvme"):  # a process each: DeepSpeed starts once
            command = [sys.executable, __file__, "--folder", given.folder, "--case", device, str(width)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = [line for line in done.stdout.splitlines() if line.startswith("width")]
            print(*(found or [done.stderr[-2000:]]), sep="\n")


def train(device: str, width: int, folder: str) -> list[float]:
    """The losses of four steps."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(rank, MASTER_PORT="29571", DS_ACCELERATOR="cpu")
    import deepspeed
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed("gloo")
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(8)])
    offload = {"device": device, "pin_memory": False}
    if device == "nvme":
        offload |= {"nvme_path": folder, "buffer_count": 4}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "offload_optimizer": offload},
    }
    optimizer = DeepSpeedCPUAdam(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    losses = []
    for _ in range(4):
        loss = engine(torch.randn(4, width)).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    main()
