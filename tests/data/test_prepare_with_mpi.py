"""`mpirun -n N megatune prepare` with the MPI of this machine: the same set, one message, no hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_tokenizers import byte_level, fast

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import write_tiny_model

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
OVERSUBSCRIBED = {"OMPI_MCA_mpi_yield_when_idle": "1", "UCX_TLS": "tcp,self"}  # more processes than cores
STARTERS = {
    "Open MPI": ("/usr/bin/mpirun", "--oversubscribe"),
    "MPICH": (str(Path(sys.prefix) / "bin/mpiexec.hydra"),),
}
INSTALLED = [name for name, starter in STARTERS.items() if Path(starter[0]).exists()]
pytestmark = [
    pytest.mark.world,
    pytest.mark.skipif(not INSTALLED, reason="no MPI (Debian: openmpi-bin; pip: mpich)"),
]


def prepare(
    run_file: Path, *overrides: str, starter: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*starter, sys.executable, "-m", "megatune", "prepare", str(run_file), *overrides],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **AS_ROOT, **OVERSUBSCRIBED},
        check=False,
    )


def mpirun(size: int, name: str | None = None) -> tuple[str, ...]:
    return (*STARTERS[name or INSTALLED[0]], "-n", str(size))


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4400 rows of four formats: five batches."""
    folder = tmp_path_factory.mktemp("mpi")
    model = write_tiny_model("gpt2", folder, vocab_size=400, bos_token_id=0, eos_token_id=0)
    fast(byte_level(400)).save_pretrained(model)
    texts = [f"{number} is the number of this row, {'and so on ' * (number % 7)}" for number in range(1100)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "b.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    (folder / "c.txt").write_text("\n\n".join(texts) + "\n")
    _write_parquet(folder / "d.parquet", texts)
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": [str(folder / name) for name in ("a.jsonl", "b.csv", "c.txt", "d.parquet")]},
        "train": {"output_dir": str(folder / "run")},
    }
    sections["data"]["max_seq_length"] = 64
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    return folder / "run.yaml"


def _write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


def files_of(output_dir: Path) -> dict[str, bytes]:
    (made,) = (output_dir / "prepared").iterdir()
    return {f"{made.name}/{path.name}": path.read_bytes() for path in made.iterdir()}


@pytest.fixture(scope="module")
def made_alone(run_file, tmp_path_factory) -> Path:
    """The output_dir of one process that MPI has nothing to do with."""
    output_dir = tmp_path_factory.mktemp("alone")
    done = prepare(run_file, f"train.output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    assert "train: 4400 examples" in done.stdout
    return output_dir


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", STARTERS)
def test_processes_of_mpirun_make_the_set_of_one(run_file, made_alone, tmp_path, name, size):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    done = prepare(run_file, f"train.output_dir={tmp_path}", starter=mpirun(size, name))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: 4400 examples") == 1
    assert files_of(tmp_path) == files_of(made_alone)


def test_a_set_that_is_there_already_is_left_as_it_is(run_file, made_alone):
    before = {path: path.stat().st_mtime_ns for path in (made_alone / "prepared").rglob("*")}
    done = prepare(run_file, f"train.output_dir={made_alone}", starter=mpirun(2))
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (made_alone / "prepared").rglob("*")} == before


def test_a_problem_of_one_process_is_told_once_and_ends_all_with_2(run_file, tmp_path):
    rows = [{"text": "fine"}] * 1500 + [{"txt": "not so"}] + [{"text": "fine"}] * 2000
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"data.train={broken}", f"train.output_dir={tmp_path / 'run'}"]

    done = prepare(run_file, *overrides, starter=mpirun(3))

    assert done.returncode == 2, done.stderr
    assert done.stderr.count("broken.jsonl:1501 (row 1501) lacks a column") == 1
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "prepared").iterdir()) == []


def test_a_wrong_run_file_is_told_once(run_file, tmp_path):
    done = prepare(run_file, "train.sede=1", f"train.output_dir={tmp_path / 'run'}", starter=mpirun(2))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("Did you mean train.seed?") == 1


def test_processes_that_mpi_does_not_know_of_are_refused_instead_of_working_alone(run_file, tmp_path):
    environ = ("env", "SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=4")
    done = prepare(run_file, f"train.output_dir={tmp_path / 'run'}", starter=environ)
    assert done.returncode == 1
    assert "4 processes were started, but MPI knows of 1" in done.stderr
    assert "srun --mpi=pmix" in done.stderr


def test_without_an_mpi_library_the_fix_is_told(run_file, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    starter = ("env", f"PYTHONPATH={tmp_path}", "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2")
    done = prepare(run_file, f"train.output_dir={tmp_path / 'run'}", starter=starter)
    assert done.returncode == 1
    assert "mpi4py cannot be used: cannot load MPI library" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_alone_does_not_touch_mpi(run_file, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise RuntimeError('MPI was touched')")
    starter = ("env", f"PYTHONPATH={tmp_path}")
    done = prepare(run_file, f"train.output_dir={tmp_path / 'run'}", starter=starter)
    assert done.returncode == 0, done.stderr
