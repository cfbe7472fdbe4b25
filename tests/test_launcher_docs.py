"""The commands of docs/launchers.md are commands: known words, and overrides that the run file accepts."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from megatune.cli.app import app
from megatune.config import load_run
from megatune.launch.hostfile import parse_hostfile
from megatune.launch.ssh_environment import BEFORE_PYTHON, FORWARDED_PREFIXES

TEXT = (Path(__file__).parents[1] / "docs/launchers.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command: str, tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("{model: {model_name_or_path: m}, data: {train: t}, train: {output_dir: o}}")
    words = shlex.split(command)
    name, run, *overrides = words[words.index("megatune") + 1 :]
    known = get_command(app)
    assert isinstance(known, typer.core.TyperGroup)
    if name != "submit":
        assert name in known.commands
    assert run == "run.yaml"
    load_run(run_file, overrides)


def test_the_hostfile_is_one() -> None:
    (hosts,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    assert [host.slots for host in parse_hostfile(hosts, source="docs")] == [8, 8]


def test_the_variables_that_go_along_are_all_named() -> None:
    for name in (*FORWARDED_PREFIXES, *BEFORE_PYTHON):
        assert f"`{name}`" in TEXT


def test_the_options_of_ssh_are_all_named() -> None:
    from megatune.launch.host_process import SSH_OPTIONS

    for option in SSH_OPTIONS:
        assert option == "-T" or f"`{option.removeprefix('-o')}`" in TEXT
