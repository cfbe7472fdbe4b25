"""The layers of the package: what may import what. The table is the design; a new module must fit into it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "megatune"

LEVELS = {
    "": 0,  # megatune/__init__.py
    "errors": 0,
    "files": 0,
    "units": 0,
    "config": 1,
    "plan": 2,
    "tasks": 2,
    "report": 2,
    "launch": 3,
    "data": 4,
    "model": 4,
    "engine": 5,
    "evaluate": 6,
    "checkpoint": 6,
    "train": 7,
    "doctor": 8,
    "tune": 8,
    "bench": 8,
    "cli": 9,
    "__main__": 10,
}
HEAVY = frozenset({"torch", "transformers", "datasets", "deepspeed", "accelerate"})
LIGHT_LEVEL = 3
"""Up to here a heavy package is never imported; those of LIGHT_AT_IMPORT may do so inside a function."""
LIGHT_AT_IMPORT = frozenset({"tune", "bench", "cli", "__main__"})
ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
ENVIRONMENT_MODULE = "launch/ranks.py"


def problems_of(path: str, source: str) -> list[str]:
    """What the module at `path` (relative to the package) does that its layer forbids."""
    tree = ast.parse(source)
    package = package_of(path)
    if package not in LEVELS:
        return [f"{path}: {package} is not in the table of layers"]
    found = [
        problem for name, at_top in imports(tree, path) for problem in import_problems(package, name, at_top)
    ]
    if path != ENVIRONMENT_MODULE:
        found += [f"reads the environment (os.{name})" for name in environment_uses(tree)]
    return [f"{path}: {problem}" for problem in found]


def package_of(path: str) -> str:
    first = path.partition("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(tree: ast.AST, path: str) -> Iterator[tuple[str, bool]]:
    """Dotted name of everything imported, and whether that happens when the module itself is imported."""
    inside = {node for function in functions(tree) for node in ast.walk(function)}
    parts = ["megatune", *Path(path).with_suffix("").parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in inside
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield f"{module}.{alias.name}", node not in inside


def functions(tree: ast.AST) -> list[ast.AST]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    ]


def import_problems(package: str, name: str, at_top: bool) -> Iterator[str]:
    top, _, rest = name.partition(".")
    level = LEVELS[package]
    if top == "megatune":
        other = rest.partition(".")[0]
        is_inside = other in LEVELS  # otherwise a name of megatune/__init__.py, as in `import __version__`
        if is_inside and other != package and LEVELS[other] >= level:
            yield f"imports {name}, which is not below it"
    if top in HEAVY and (level <= LIGHT_LEVEL or (package in LIGHT_AT_IMPORT and at_top)):
        yield f"imports {name}, which is too heavy for it"
    if top == "deepspeed" and package != "engine":
        yield "imports deepspeed, which only the engine may"


def environment_uses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr in ENVIRONMENT:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (alias.name for alias in node.names if alias.name in ENVIRONMENT)


def modules() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def test_the_table_names_every_package_there_is():
    assert {package_of(path) for path in modules()} <= set(LEVELS)
    assert len(modules()) > len(LEVELS)


def test_the_readme_gives_the_order_of_the_table():
    text = (ROOT.parent / "README.md").read_text()
    order = text.partition("only from packages before them in `")[2].partition("`")[0]
    told = {
        name.strip(): number for number, level in enumerate(order.split("·")) for name in level.split(",")
    }
    assert told == {name: number for name, number in LEVELS.items() if name not in ("", "__main__")}


def test_no_module_breaks_its_layer():
    problems = [problem for path in modules() for problem in problems_of(path, (ROOT / path).read_text())]
    assert problems == []


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("config/load.py", "from megatune.plan import memory", "imports megatune.plan.memory"),
        ("config/load.py", "from ..plan import memory", "imports megatune.plan.memory"),
        ("plan/memory.py", "def f():\n    import megatune.tasks.rows", "imports megatune.tasks.rows"),
        ("units.py", "from megatune import errors", "imports megatune.errors"),
        ("errors.py", "import megatune.config", "imports megatune.config"),
        ("data/rows.py", "from megatune import engine", "imports megatune.engine"),
        ("launch/local.py", "def f():\n    import torch.cuda", "imports torch.cuda, which is too heavy"),
        ("report/table.py", "if TYPE_CHECKING:\n    from datasets import Dataset", "too heavy"),
        ("cli/train.py", "import torch", "too heavy"),
        ("cli/train.py", "class A:\n    from transformers import x", "too heavy"),
        ("train/loop.py", "def f():\n    import deepspeed", "only the engine may"),
        ("train/loop.py", "import os\nx = os.environ.get('A')", "reads the environment (os.environ)"),
        ("launch/local.py", "import os\nx = os.getenv('A')", "reads the environment (os.getenv)"),
        ("cli/env.py", "from os import environ", "reads the environment (os.environ)"),
        ("helpers/x.py", "", "helpers is not in the table"),
    ],
)
def test_a_planted_violation_is_found(path, source, problem):
    (found,) = problems_of(path, source)
    assert found.startswith(path)
    assert problem in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/train.py", "def f():\n    import torch\n    from megatune.train import loop"),
        ("engine/zero.py", "import deepspeed, torch\nfrom megatune.model import build"),
        ("config/load.py", "from megatune.config import run\nfrom megatune.errors import ConfigError"),
        ("config/load.py", "from .run import Run\nfrom ..errors import ConfigError"),
        ("launch/ranks.py", "import os\nx = os.environ['RANK']"),
        ("report/html.py", "from megatune import __version__"),
    ],
)
def test_what_the_table_allows_is_not_called_a_violation(path, source):
    assert problems_of(path, source) == []


def test_the_command_line_starts_without_any_heavy_package():
    code = "import json, sys, megatune.cli; megatune.cli.main; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in json.loads(done.stdout)} & HEAVY
