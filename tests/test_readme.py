"""What README and docs tell users to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatune.config import load_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_run_file_in_the_readme_is_valid(tmp_path: Path) -> None:
    blocks = _blocks("yaml")
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"run-{number}.yaml"
        path.write_text(block)
        load_run(path)


def test_the_shipped_recipes_are_valid() -> None:
    recipes = sorted((ROOT / "megatune/data/recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        load_run(recipe)


def test_the_command_table_names_every_command_and_no_other() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "megatune", "--help"], capture_output=True, text=True, check=True
    ).stdout
    offered = set(re.findall(r"^  (\w+) ", help_text.split("Commands:")[1], flags=re.MULTILINE))

    told = set(re.findall(r"^\| `megatune (\w+)", README, flags=re.MULTILINE))

    assert told == offered


@pytest.mark.parametrize("command", re.findall(r"^\| `megatune (\w+)", README, flags=re.MULTILINE))
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatune", command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"Example: megatune {command}" in " ".join(done.stdout.split())


def test_make_has_the_targets_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_the_python_and_setup_requirements_agree_with_the_readme() -> None:
    assert "Python ≥ 3.11" in README
    assert "python_requires = >=3.11" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_ci_calls_what_the_readme_tells_users() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for command in ("make check", "make demo", "make test"):
        assert f"\n{command}" in script
