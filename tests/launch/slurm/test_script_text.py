"""The text of batch scripts, kept whole for every kind of job."""

import subprocess

import pytest
from golden_cases import CASES, GOLDEN, script_of
from job_cases import request_of

from megatune.launch.slurm.lint import lint_script
from megatune.launch.slurm.script import directives


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_that_is_kept(name):
    kept = (GOLDEN / f"{name}.sbatch").read_text(encoding="utf-8")

    assert script_of(name) == kept, "python tests/launch/slurm/golden_cases.py writes it anew"


def test_every_kept_script_has_a_case():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_bash_can_read_every_kept_script(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_our_own_lint_finds_nothing_worse_than_a_note(path):
    assert [str(found) for found in lint_script(path.read_text()) if found.severity != "note"] == []


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ({}, "--gpus-per-node=4"),
        ({"gpu_type": "a100"}, "--gpus-per-node=a100:4"),
        ({"gpu_request": "gres"}, "--gres=gpu:4"),
        ({"gpu_request": "gres", "gpu_type": "h100"}, "--gres=gpu:h100:4"),
        ({"gpu_request": "gpus-per-task", "gpu_type": "h100"}, "--gpus-per-task=h100:1"),
        ({"gpu_request": "none"}, None),
    ],
)
def test_gpus_are_asked_for_as_the_site_takes_it(tmp_path, site, expected):
    lines = directives(request_of(tmp_path, site))

    assert [line for line in lines if "gpu" in line] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("slurm", "line"),
    [
        ({"partition": "gpu,long"}, "--partition=gpu,long"),
        ({"account": "p1"}, "--account=p1"),
        ({"qos": "high"}, "--qos=high"),
        ({"constraint": "a100&ib"}, "--constraint=a100&ib"),
        ({"reservation": "course"}, "--reservation=course"),
        ({"nodes": 3}, "--nodes=3"),
        ({"cpus_per_task": 5}, "--cpus-per-task=5"),
        ({"mem": "256G"}, "--mem=256G"),
        ({"time": "1-00:00:00"}, "--time=1-00:00:00"),
        ({"signal_delay_s": 77}, "--signal=B:USR2@77"),
        ({"exclude": "n[1-3]"}, "--exclude=n[1-3]"),
        ({"nodelist": "n[4-7]"}, "--nodelist=n[4-7]"),
        ({"job_name": "two words"}, '--job-name="two words"'),
        ({"requeue": False}, "--no-requeue"),
        ({"additional_parameters": {"mail-type": "END", "comment": "a b", "hold": True}}, '--comment="a b"'),
        ({"additional_parameters": {"hold": True, "reboot": False}}, "--hold"),
    ],
)
def test_each_key_of_the_slurm_section_is_in_the_script(tmp_path, slurm, line):
    assert line in directives(request_of(tmp_path, slurm=slurm))


def test_without_a_delay_there_is_no_signal(tmp_path):
    assert not [
        line for line in directives(request_of(tmp_path, slurm={"signal_delay_s": 0})) if "signal" in line
    ]


def test_a_job_of_one_node_goes_with_its_node(tmp_path):
    assert "--no-kill" not in directives(request_of(tmp_path))
    assert "--no-kill" in directives(request_of(tmp_path, slurm={"nodes": 2}))
