"""Text of users never becomes a command: it is refused, or it arrives as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from job_cases import request_of
from pydantic import ValidationError

from megatune.config.fields import one_line
from megatune.errors import ConfigError
from megatune.launch.slurm.lint.parse import parse_script
from megatune.launch.slurm.script import render_script

ATTACKS = [
    "$(touch {mark})",
    "`touch {mark}`",
    "; touch {mark} ;",
    "a' ; touch {mark} ; '",
    'a" ; touch {mark} ; "',
    "a\n#SBATCH --uid=0",
    "a\ntouch {mark}\n",
    "a\\",
    "a && touch {mark}",
    "a | touch {mark}",
    "a > {mark}",
    "../../etc/passwd",
    "a\0b",
    "{{{{ 7 * 7 }}}}",
    "%j%A",
    "--uid=0",
    "-x",
    "naïve ünïcode 日本",
    "a\u2028touch",
    "${{IFS}}",
    "~root",
]
SLURM_TEXTS = ("partition", "account", "qos", "constraint", "reservation", "exclude", "nodelist", "job_name")
SITE_TEXTS = ("network_interface", "scratch", "gpu_type", "mpi", "python", "gpu")
SITE_LISTS = ("modules", "source", "srun_args")


def try_request(folder: Path, site: dict[str, Any] | None, **sections: Any) -> str | None:
    """The script, or None where the values were refused. Any other error is a failure."""
    try:
        return render_script(request_of(folder, site, **sections))
    except ConfigError as error:
        assert str(error).strip()
    except ValidationError as error:
        assert error.errors()
    return None


def is_harmless(node: FakeNode, script: str, mark: Path) -> None:
    """Run the script: nothing may be executed, and sbatch may read no option that megatune did not write."""
    names = {option.name for option in parse_script(script).options if option.is_read}
    assert names.isdisjoint({"uid", "wrap", "gid"})
    ended = node.run(script, HERE="/tmp")
    assert not mark.exists(), ended.text


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("key", SLURM_TEXTS)
def test_no_text_of_the_slurm_section_is_executed(tmp_path, key, attack):
    mark = tmp_path / "mark"
    script = try_request(tmp_path, None, slurm={key: attack.format(mark=mark)})
    if script is not None:
        is_harmless(FakeNode(tmp_path / "node"), script, mark)


@pytest.mark.parametrize("attack", [*ATTACKS, "a\ud800"])
@pytest.mark.parametrize("key", [*SITE_TEXTS, *SITE_LISTS, "environment", "additional_parameters", "mounts"])
def test_no_text_of_a_site_profile_is_executed(tmp_path, key, attack):
    mark = tmp_path / "mark"
    text = attack.format(mark=mark)
    site: dict[str, Any] = {key: [text] if key in SITE_LISTS else text}
    if key == "environment":
        site = {"environment": {"SITE_TEXT": text}}
    if key == "additional_parameters":
        site = {"additional_parameters": {"comment": text}}
    if key == "mounts":
        site = {"container": {"runtime": "pyxis", "image": "/i", "mounts": [f"/a:/{text}"]}}
    script = try_request(tmp_path, site)
    if script is not None:
        is_harmless(FakeNode(tmp_path / "node"), script, mark)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_path_of_a_run_is_executed(tmp_path, attack):
    mark = tmp_path / "mark"
    script = try_request(tmp_path, None, train={"output_dir": f"{tmp_path}/{attack.format(mark='mark')}"})
    if script is not None:
        is_harmless(FakeNode(tmp_path / "node"), script, mark)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_a_value_of_the_environment_arrives_as_it_is(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    node = FakeNode(folder / "node")
    run = folder / "run"
    (run / "logs").mkdir(parents=True)
    script = try_request(
        folder,
        {"python": node.python, "environment": {"SITE_TEXT": text}},
        train={"output_dir": str(run)},
    )
    if script is None:
        with pytest.raises(ValueError):
            one_line(text)
        return

    node.run(script)

    (training,) = node.trainings()
    assert training["environment"]["SITE_TEXT"] == text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=30))
@example(name="\x85")
def test_a_run_folder_of_any_name_is_refused_or_trained_in(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("any")
    node = FakeNode(folder / "node")
    run = folder / "runs" / name
    if name in (".", "..") or "\0" in name:
        return
    script = try_request(folder, {"python": node.python}, train={"output_dir": str(run)})
    if script is None:
        return
    (run / "logs").mkdir(parents=True)

    node.run(script)

    (training,) = node.trainings()
    assert training["arguments"][-1] == f"{run}/submitted.yaml", json.dumps(name)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_an_option_of_srun_arrives_as_it_is(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("any")
    node = FakeNode(folder / "node")
    (folder / "run/logs").mkdir(parents=True)
    script = try_request(
        folder,
        {"python": node.python, "srun_args": [f"--comment={value}"]},
        train={"output_dir": str(folder / "run")},
    )
    if script is None:
        with pytest.raises(ValueError):
            one_line(value)
        return

    node.run(script)

    (started,) = [call["arguments"] for call in node.calls("srun") if "train" in call["arguments"]]
    assert f"--comment={value}" in started
