#!/usr/bin/env bash
# Times the suites `single-gpu` and `largest` and most of `gpu-layouts` on one GPU, unattended and without a network,
# within 9 minutes.
#
#   benchmarks/gpu.sh [RESULTS_FOLDER]
#
# PYTHON: the interpreter that has megatune, its DeepSpeed and a CUDA build of torch >= 2.11 (default: that of .venv,
# else python3). BUDGET_S: seconds for all (default 520). The records carry the device's name, its power limit and
# every kernel that was really used; the exit code is 0 when every case ran.
set -u
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
deadline=$((SECONDS + ${BUDGET_S:-520}))
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" - <<'CHECK' || exit 2
import sys
import torch
from megatune.launch.devices import count_gpus
if not torch.cuda.is_available():
    sys.exit(f"benchmarks/gpu.sh: torch {torch.__version__} sees no GPU")
if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
    sys.exit(f"benchmarks/gpu.sh: torch is {torch.__version__}; these figures are kept for 2.11 and later")
if count_gpus() == 0:
    sys.exit(
        f"benchmarks/gpu.sh: torch sees {torch.cuda.device_count()} GPU(s) and megatune none, so that its cases would run "
        "on the CPU. It asks `nvidia-smi -L`, then /proc/driver/nvidia/gpus, and takes DS_ACCELERATOR=cpu for your wish: "
        "unset that, or give the container the driver's tools (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
    )
free, total = torch.cuda.mem_get_info()
print(f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, torch {torch.__version__}")
CHECK
nvidia-smi --query-gpu=name,power.limit,driver_version --format=csv,noheader || true
mkdir -p "$results"

failed=0
run() {  # run SUITE SECONDS [OPTION...]: one round of a suite
    "$python" -m megatune bench "$1" --rounds 1 --budget "$2" --timeout 240 --results "$results" "${@:3}" || failed=1
}
part() {  # part SUITE TENTHS [OPTION...]: so much of the time that is left, unless that is too little for a case
    left=$((deadline - SECONDS))
    if [ "$left" -gt 30 ]; then
        run "$1" $((left * $2 / 10)) "${@:3}"
    else
        echo "benchmarks/gpu.sh: no time was left for $1" >&2
        failed=1
    fi
}
# The op of the cases with the optimizer on the host: no case of them has to compile within its own time.
"$python" -m megatune.launch.slurm.prebuild cpu_adam || failed=1
part single-gpu 5
part largest 6
part gpu-layouts 10 --only 'as planned' --only 'whole logits' --only 'stage *'
exit "$failed"
