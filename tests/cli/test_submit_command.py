"""`megatune submit` as users call it, with made-up Slurm programs on the PATH."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Done, assert_refused, megatune
from planted_secrets import SECRETS, files_with_secrets

HEAVY = ("torch", "transformers", "datasets", "deepspeed", "accelerate")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of programs: sbatch writes its arguments down and answers with 4711, squeue knows nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "sbatch": f'printf "%s\\n" "$@" >>{tmp_path}/sbatch.txt; echo "4711;north"',
        "squeue": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    config = {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    (model / "config.json").write_text(json.dumps(config))
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": "train.jsonl", "max_seq_length": 1024},
        "train": {"output_dir": "runs/first", "global_batch_size": 16},
        "parallel": {"tp_size": 2},
        "checkpoint": {"save_steps": 10},
        "slurm": {"nodes": 2, "gpus_per_node": 4, "cpus_per_task": 8, "time": "04:00:00"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def submit(slurm: Path, run_file: Path | None, *arguments: object, path: str = os.environ["PATH"]) -> Done:
    """`megatune submit` in the run file's folder, with `slurm`'s programs first on the PATH."""
    environment = {
        **os.environ,
        "PATH": f"{slurm}:{path}",
        "MEGATUNE_CACHE": str(slurm.parent / "cache"),
    }
    command = [sys.executable, "-m", "megatune", "submit", *([run_file] if run_file else []), *arguments]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=slurm.parent,
        env=environment,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def given_to_sbatch(slurm: Path) -> list[str]:
    path = slurm.parent / "sbatch.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_run_is_submitted_and_told_how_to_be_followed(slurm, run_file):
    done = submit(slurm, run_file)

    assert done.code == 0, done.err
    folder = slurm.parent / "runs/first"
    assert given_to_sbatch(slurm) == ["--parsable", f"{folder}/job.sbatch"]
    for words in (
        "submitted job 4711 on north",
        f"log: {folder}/logs/job-4711.log",
        f"megatune status {folder} --watch",
        f"megatune cancel {folder}",
        "resume: submit again",
    ):
        assert words in done.out
    assert (folder / "submitted.yaml").is_file()
    assert json.loads((folder / "jobs.jsonl").read_text())["job_id"] == "4711"


def test_what_is_left_open_is_shown_as_planned_and_left_open_in_the_job(slurm, run_file):
    unknown = submit(slurm, run_file, "--dry-run", "parallel.zero_stage=auto")
    assert (
        "planned: parallel.zero_stage=3 model.gradient_checkpointing=false (how much memory" in unknown.text
    )
    on_cpu = ("slurm.gpus_per_node=0", "slurm.mem=256G", "launch.nproc_per_node=4")
    known = submit(slurm, run_file, "parallel.zero_stage=auto", *on_cpu)
    assert "planned: parallel.zero_stage=1" in known.text and "of 64.00 GiB" in known.text
    submitted = (slurm.parent / "runs/first/submitted.yaml").read_text()
    assert "zero_stage: auto  # auto" in submitted
    assert "gradient_checkpointing: auto" in submitted


def test_a_dry_run_shows_script_and_plan_and_leaves_nothing(slurm, run_file):
    done = submit(slurm, run_file, "--dry-run")

    assert done.code == 0, done.err
    assert given_to_sbatch(slurm) == []
    assert not (slurm.parent / "runs").exists()
    for words in (
        "#SBATCH --nodes=2",
        "ranks: 8 on 2 node(s), tp=2 x dp=4",
        "batch: 16 sequences (16384 tokens) a step = 1 x 4 accumulation x 4",
        "model: 124.4M parameters",
        "whether it fits: n/a (gpu is not set in a site profile)",
        "step time, whole run: n/a",
        "nothing was submitted",
    ):
        assert words in done.out


def test_what_a_login_node_cannot_know_is_not_made_up(slurm, run_file):
    done = submit(slurm, run_file, "--dry-run", "--json", "model.model_name_or_path=some/model")

    answer = json.loads(done.out)
    assert answer["plan"] is None
    assert "some/model is no folder here" in answer["plan_missing"]


@pytest.fixture
def on_a100(slurm: Path) -> str:
    """The argument for a site whose GPUs the hardware table knows."""
    (slurm.parent / "site.yaml").write_text("gpu: a100-40gb\n")
    return f"slurm.site={slurm.parent}/site.yaml"


def test_a_known_gpu_gives_memory_and_times(slurm, run_file, on_a100):
    arguments = (on_a100, "train.max_steps=1000", "--dry-run")
    done = submit(slurm, run_file, *arguments)
    plan = json.loads(submit(slurm, run_file, *arguments, "--json").out)["plan"]

    assert done.code == 0, done.err
    assert "fits the 40.00 GiB of a100-40gb" in done.out
    assert "tokens/s (the planner's forecast)" in done.out
    assert plan["fits"] is True
    devices = {
        "name": "a100-40gb",
        "count": 8,
        "per_node": 4,
        "links_measured_at": None,
        "calibrated_at": None,
    }
    assert plan["devices"] == devices
    assert (plan["layout"]["tp"], plan["layout"]["dp"], plan["layout"]["accumulation"]) == (2, 4, 4)
    assert plan["forecast"]["total_s"] == pytest.approx(1000 * plan["time"]["step_seconds"])


def test_an_unknown_gpu_is_not_guessed(slurm, run_file):
    plan = json.loads(submit(slurm, run_file, "--dry-run", "--json").out)["plan"]

    assert plan["fits"] is None
    assert plan["devices"]["name"] is None
    assert plan["memory"]["device_limit_bytes"] is None
    assert plan["memory"]["device_total_bytes"] > 0
    assert plan["time"]["step_seconds"] is None


TOO_BIG = ("train.per_device_train_batch_size=1024", "train.global_batch_size=4096")


@pytest.mark.parametrize("mode", [[], ["--dry-run"], ["--lint"]])
def test_a_layout_that_does_not_fit_the_gpu_is_refused_with_the_nearest_that_do(
    slurm, run_file, on_a100, mode
):
    done = submit(slurm, run_file, on_a100, *TOO_BIG, *mode)

    assert_refused(done, "more than the 40.00 GiB", "Nearest layouts that fit")
    assert done.err.count("  tp=") == 3
    assert given_to_sbatch(slurm) == []


def test_a_layout_that_the_job_would_refuse_is_not_submitted(slurm, run_file, tmp_path):
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_head": 2}))
    assert_refused(submit(slurm, run_file, "parallel.tp_size=4"), "2 attention head(s)", "from 1 to 2")
    assert given_to_sbatch(slurm) == []


def test_rows_longer_than_the_model_has_positions_are_not_submitted(slurm, run_file):
    assert_refused(submit(slurm, run_file, "data.max_seq_length=2048"), "more than the 1024 positions")
    assert given_to_sbatch(slurm) == []


def test_a_mistake_in_a_site_profile_is_named_as_the_profiles(slurm, run_file, tmp_path):
    (tmp_path / "site.yaml").write_text("gpu: A100\n")
    done = submit(slurm, run_file, f"slurm.site={tmp_path}/site.yaml", "--dry-run")
    assert_refused(done, f"{tmp_path}/site.yaml: gpu is A100 (line 1)")
    done = submit(slurm, run_file, 'slurm.additional_parameters={mail-user: ""}', "--dry-run")
    assert_refused(done, "additional_parameters")


def test_the_same_layout_on_an_unknown_gpu_is_submitted(slurm, run_file):
    assert submit(slurm, run_file, *TOO_BIG).code == 0


def test_one_run_of_an_array_that_does_not_fit_stops_it(slurm, run_file, on_a100):
    sweep = "train.per_device_train_batch_size=1,1024"
    done = submit(slurm, run_file, on_a100, "train.global_batch_size=4096", "--sweep", sweep)

    assert_refused(done, "micro_batch=1024", "Nearest layouts that fit")
    assert given_to_sbatch(slurm) == []


def test_without_another_time_the_chain_uses_the_forecast(slurm, run_file, on_a100):
    arguments = (on_a100, "train.max_steps=5000000", "slurm.time=12:00:00", "--dry-run", "--json")
    answer = json.loads(submit(slurm, run_file, *arguments, "--chain", "auto").out)
    alone = json.loads(submit(slurm, run_file, *arguments).out)

    total_s = answer["plan"]["forecast"]["total_s"]
    assert f"{total_s:.0f} s are left to train, by the planner's forecast" in answer["chain"]["reason"]
    assert answer["chain"]["jobs"] > 1
    (finding,) = [finding for finding in alone["findings"] if finding["rule"] == "time-and-run"]
    assert "(by the planner's forecast)" in finding["message"]


def test_overrides_win_over_the_file(slurm, run_file):
    done = submit(slurm, run_file, "slurm.nodes=4", "slurm.partition=long", "--dry-run")

    assert "#SBATCH --nodes=4" in done.out
    assert "#SBATCH --partition=long" in done.out


def test_the_file_of_a_job_names_the_parts_of_a_mixture(slurm, run_file):
    done = submit(slurm, run_file, "data.train=[{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1}]")

    assert done.code == 0, done.err
    submitted = yaml.safe_load((slurm.parent / "runs/first/submitted.yaml").read_text())
    parts = [{"paths": ["a.jsonl"], "weight": 2.0}, {"paths": ["b.jsonl"], "weight": 1.0}]
    assert submitted["data"]["train"]["mixture"] == parts


def test_lint_only_checks(slurm, run_file):
    clean = submit(slurm, run_file, "--lint")
    risky = submit(slurm, run_file, "--lint", "checkpoint.save_steps=null", "--json")

    assert (clean.code, clean.out.strip()) == (0, "nothing found")
    assert risky.code == 0, "a warning is no error"
    assert [finding["severity"] for finding in json.loads(risky.out)["findings"]] == ["warning"]
    assert given_to_sbatch(slurm) == []


def test_an_error_of_the_lint_stops_the_submission(slurm, run_file):
    arguments = ("slurm.mem=100M", "parallel.offload=optimizer")
    done = submit(slurm, run_file, *arguments)
    only_checked = submit(slurm, run_file, *arguments, "--lint")

    assert done.code == 1
    assert "was not submitted" in done.err
    assert only_checked.code == 1
    assert given_to_sbatch(slurm) == []


def test_json_holds_all_there_is_to_know(slurm, run_file):
    answer = json.loads(submit(slurm, run_file, "--json").out)

    assert set(answer) == {"schema", "runs", "jobs", "plan", "plan_missing", "chain", "findings", "script"}
    assert answer["jobs"] == [
        {
            "job_id": "4711",
            "cluster": "north",
            "depends_on": None,
            "runs": [
                {
                    "run": f"{slurm.parent}/runs/first",
                    "job_id": "4711",
                    "log": f"{slurm.parent}/runs/first/logs/job-4711.log",
                }
            ],
        }
    ]


def test_a_chain_says_how_many_jobs_and_why(slurm, run_file):
    done = submit(slurm, run_file, "--chain", "auto", "--eta", "08:00:00")

    assert done.code == 0, done.err
    assert "chain: 3 jobs (28800 s are left to train" in done.out
    assert given_to_sbatch(slurm).count("--dependency=afterany:4711") == 2
    assert "--no-requeue" in (slurm.parent / "runs/first/job.sbatch").read_text()


def test_a_sweep_is_one_array_with_a_folder_for_each_run(slurm, run_file):
    done = submit(slurm, run_file, "--sweep", "train.seed=1,2", "slurm.array_parallelism=1")

    assert done.code == 0, done.err
    assert given_to_sbatch(slurm).count("--parsable") == 1
    for task, seed in enumerate((1, 2)):
        folder = slurm.parent / f"runs/first/seed-{seed}"
        assert json.loads((folder / "jobs.jsonl").read_text())["job_id"] == f"4711_{task}"
        assert f"seed: {seed}" in (folder / "submitted.yaml").read_text()
        assert "#SBATCH --array=0-1%1" in (folder / "job.sbatch").read_text()


def test_files_that_the_shell_expanded_behind_array_are_all_taken(slurm, run_file):
    files = []
    for name in "ab":
        files.append(slurm.parent / f"{name}.yaml")
        document: dict[str, Any] = yaml.safe_load(run_file.read_text())
        document["train"]["output_dir"] = f"runs/{name}"
        files[-1].write_text(yaml.safe_dump(document))

    done = submit(slurm, None, "--array", *files, "slurm.nodes=1", "--json")

    assert done.code == 0, done.err
    assert [Path(run).name for run in json.loads(done.out)["runs"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slurm.partition=a b"], "slurm.partition is 'a b'"),
        (["slurm.site=nowhere"], "no site profile has this name"),
        (["slurm.gpus_per_node=null"], "slurm.gpus_per_node is missing"),
        (["--chain", "0"], "--chain is '0'"),
        (["--chain", "auto"], "give --eta HH:MM:SS"),
        (["--chain", "2", "--sweep", "train.seed=1,2"], "--chain is for one run"),
        (["--array", "x.yaml", "--sweep", "train.seed=1,2"], "--array or --sweep, not both"),
        (['train.output_dir=a"b'], "sbatch would not take it"),
    ],
)
def test_the_users_mistakes_end_with_2_and_a_message(slurm, run_file, arguments, words):
    assert_refused(submit(slurm, run_file, *arguments), words)
    assert given_to_sbatch(slurm) == []


def test_without_a_run_file_the_command_says_what_to_give():
    assert_refused(megatune("submit"), "give a run file, or --array")


def test_on_a_machine_without_slurm_the_message_says_so(slurm, run_file):
    (slurm / "sbatch").unlink()

    done = submit(slurm, run_file, path="/nowhere")

    assert done.code == 1
    assert "there is no sbatch" in done.err
    assert "Traceback" not in done.err


def test_a_login_node_needs_no_heavy_library(slurm, run_file):
    code = (
        "import json, sys\n"
        "from megatune.cli.submit import SubmitOptions, submit_run\n"
        "from pathlib import Path\n"
        "submit_run(Path(sys.argv[1]), [], SubmitOptions(dry_run=True, as_json=True))\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_file)],
        capture_output=True,
        text=True,
        cwd=slurm.parent,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}

    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("path", sorted((ROOT / "slurm/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_example_makes_a_script_that_bash_reads_and_the_lint_passes(slurm, path):
    answer = json.loads(submit(slurm, path, "--dry-run", "--json").out)
    (slurm.parent / "job.sbatch").write_text(answer["script"])

    assert answer["findings"] == []
    subprocess.run(["bash", "-n", slurm.parent / "job.sbatch"], check=True)


def test_the_sweep_that_the_tuning_example_names_works(slurm):
    path = ROOT / "slurm/examples/tuning-array.yaml"
    sweeps = [line.split("--sweep ")[1:] for line in path.read_text().splitlines() if "--sweep" in line]
    arguments = [part for line in sweeps for text in line for part in ("--sweep", text.strip())]

    answer = json.loads(submit(slurm, path, *arguments, "--dry-run", "--json").out)

    assert len(answer["runs"]) == 6


def test_no_secret_of_the_environment_is_in_the_script_or_any_other_file_of_a_submit(
    slurm: Path, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    done = submit(slurm, run_file)

    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "first" / "job.sbatch").is_file()
    assert files_with_secrets(tmp_path) == []
    assert "planted0" not in done.text
