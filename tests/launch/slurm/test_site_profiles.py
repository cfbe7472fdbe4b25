"""Site profiles: found by name, every mistake told in the user's words, every shipped one of use."""

from pathlib import Path

import pytest

from megatune.errors import ConfigError
from megatune.launch.slurm.site import CHECKOUT, SiteProfile, find_site, load_site

SITES = sorted((CHECKOUT / "slurm/sites").glob("*.yaml"))


def load(tmp_path: Path, text: str) -> SiteProfile:
    path = tmp_path / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return load_site(str(path), run_file=tmp_path / "run.yaml")


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_every_shipped_profile_is_valid(path):
    assert load_site(path.stem, run_file=Path("run.yaml")) == load_site(str(path), run_file=Path("run.yaml"))


def test_the_example_names_every_key():
    text = (CHECKOUT / "slurm/sites/example.yaml").read_text(encoding="utf-8")
    missing = [
        name for name in SiteProfile.model_fields if f"\n{name}:" not in text and f"#{name}:" not in text
    ]

    assert missing == ["container"], "which has a profile of its own"


def test_a_profile_is_looked_for_beside_the_run_file_first(tmp_path, monkeypatch):
    here, there, home = tmp_path / "here", tmp_path / "there", tmp_path / "home"
    for folder in (here / "slurm/sites", there / "slurm/sites", home / ".config/megatune/sites"):
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("partition: gpu\n")
    monkeypatch.chdir(there)

    def found() -> Path:
        return find_site("mine", run_file=here / "run.yaml", home=home)

    assert found() == here / "slurm/sites/mine.yaml"
    (here / "slurm/sites/mine.yaml").unlink()
    assert found() == there / "slurm/sites/mine.yaml"
    (there / "slurm/sites/mine.yaml").unlink()
    assert found() == home / ".config/megatune/sites/mine.yaml"


def test_a_name_that_no_profile_has_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(
        ConfigError, match=r"slurm.site = gress: .*Did you mean gres\?.*There are .*example.*Looked in"
    ):
        find_site("gress", run_file=tmp_path / "run.yaml", home=tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"slurm.site = ./none.yaml: there is no such file"):
        find_site("./none.yaml", run_file=tmp_path / "run.yaml")


def test_a_key_that_does_not_exist_is_answered_with_the_nearest(tmp_path):
    message = refusal(tmp_path, "partiton: gpu\n")

    assert "there is no top-level key 'partiton' (line 1). Did you mean partition?" in message
    assert "network_interface" in message, "all keys are listed"


def test_keys_of_the_run_file_are_not_taken_for_those_of_a_profile(tmp_path):
    assert "It is called" not in refusal(tmp_path, "warmup_ratio: 0.1\n")


def test_all_problems_are_told_at_once(tmp_path):
    message = refusal(tmp_path, "gpus_per_node: many\nscratch: tmp\ncontainer: {runtime: docker, image: a}\n")

    assert "has 3 problems" in message
    for part in ("gpus_per_node is many", "scratch is tmp", "container.runtime is docker"):
        assert part in message


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    assert "partition is given twice" in refusal(tmp_path, "partition: a\npartition: b\n")


@pytest.mark.parametrize(
    "text",
    [
        'partition: "gpu; touch x"',
        'partition: "-p"',
        'account: "a b"',
        'constraint: "a`x`"',
        'network_interface: "ib0,lo"',
        'network_interface: "../ib0"',
        'scratch: "$TMPDIR$(touch x)"',
        'scratch: "$TMPDIR/../../etc"',
        'scratch: "${TMPDIR}"',
        'modules: ["-x"]',
        'modules: ["cuda;ls"]',
        'source: ["relative/activate"]',
        'python: "python3"',
        'environment: {"A B": x}',
        'environment: {SLURM_JOB_ID: "1"}',
        'environment: {RANK: "0"}',
        'environment: {A: "two\\nlines"}',
        'container: {runtime: pyxis, image: "a b"}',
        'container: {runtime: pyxis, image: a, mounts: ["data:/data"]}',
        'container: {runtime: pyxis, image: a, mounts: ["/a:/b,/etc:/etc"]}',
        'mpi: "pmix --foo"',
        'gpu: "rtx-9999"',
        'gpu_type: "a100:8"',
        'srun_args: ["-n4"]',
        'srun_args: ["--ntasks=4"]',
        'srun_args: ["--mpi=pmix\\nrm"]',
        "additional_parameters: {nodes: 4}",
        "additional_parameters: {wrap: ls}",
        "additional_parameters: {mail-typ: END}",
        'additional_parameters: {comment: "a # b"}',
        "additional_parameters: {comment: 'a \"b'}",
        'qos: "a\\nb"',
        'reservation: "a\\0b"',
    ],
)
def test_what_a_shell_or_sbatch_could_misread_is_refused(tmp_path, text):
    key = text.partition(":")[0]

    assert key in refusal(tmp_path, text + "\n")


def test_an_option_with_a_slip_is_answered_with_the_nearest(tmp_path):
    assert "did you mean mail-type?" in refusal(tmp_path, "additional_parameters: {mail-typ: END}\n")


def test_an_option_that_has_a_key_of_its_own_is_answered_with_the_key(tmp_path):
    assert "time is set by slurm.time" in refusal(tmp_path, 'additional_parameters: {time: "1:00:00"}\n')
