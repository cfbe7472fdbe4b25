"""The jobs whose scripts are kept as text in golden/.

After a change of the template that is meant: `python tests/launch/slurm/golden_cases.py` writes them anew;
`git diff` then shows what the change does to every kind of job.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from megatune.launch.slurm.request import JobRequest
from megatune.launch.slurm.script import render_script
from megatune.launch.slurm.submit import without_requeue

sys.path.insert(0, str(Path(__file__).parent))

from job_cases import array_of, request_of

GOLDEN = Path(__file__).parent / "golden"
_PYXIS = {"runtime": "pyxis", "image": "/images/megatune.sqsh", "mounts": ["/data:/data:ro"]}
_APPTAINER = {"runtime": "apptainer", "image": "/images/megatune.sif", "python": "/usr/bin/python3"}
_CPU = {"gpus_per_node": 0, "cpus_per_node": 32, "mem_per_node": "120G"}

CASES: dict[str, Callable[[Path], JobRequest]] = {
    "one_node": lambda folder: request_of(folder),
    "four_nodes_of_eight": lambda folder: request_of(
        folder,
        {"partition": "gpu", "account": "project1", "network_interface": "ib0", "exclusive": True},
        parallel={"tp_size": 2, "offload": "optimizer"},
        slurm={"nodes": 4, "gpus_per_node": 8, "preflight": True, "exclude": "node[07,12]"},
    ),
    "cpu_only": lambda folder: request_of(
        folder,
        _CPU,
        launch={"nproc_per_node": 4},
        slurm={"nodes": 2, "gpus_per_node": None, "cpus_per_task": None},
    ),
    "pyxis": lambda folder: request_of(folder, {"container": _PYXIS}, slurm={"nodes": 2}),
    "apptainer": lambda folder: request_of(folder, {"container": _APPTAINER}),
    "modules": lambda folder: request_of(
        folder,
        {
            "module_purge": True,
            "modules": ["gcc/12", "cuda/12.8"],
            "source": ["/home/me/my venv/bin/activate"],
            "environment": {"HF_HOME": "/shared/hf", "GREETING": "it's $HOME"},
            "scratch": "$TMPDIR/ops",
            "gpu_request": "gres",
            "gpu_type": "a100",
            "mpi": "none",
        },
    ),
    "array": lambda folder: array_of(
        folder, ["a b", "c%d", "e"], {"gpu_request": "gpus-per-task"}, slurm={"array_parallelism": 2}
    ),
    "resubmit": lambda folder: request_of(folder, {"requeue": "resubmit"}, slurm={"nodes": 2}),
    "chain": lambda folder: without_requeue(request_of(folder)),
}


def script_of(name: str) -> str:
    """The script of one case, as the code renders it now."""
    with tempfile.TemporaryDirectory() as folder:
        return render_script(CASES[name](Path(folder)))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.sbatch").write_text(script_of(case), encoding="utf-8")
