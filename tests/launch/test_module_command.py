"""How the package starts its modules as programs."""

import subprocess
from pathlib import Path

import megatune
from megatune.launch.processes import module_command

PACKAGE = Path(megatune.__file__).parent


def test_a_module_is_started_without_what_the_users_folder_calls_so(tmp_path, monkeypatch):
    (tmp_path / "tokenize.py").write_text('raise SystemExit("a script of the user")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "added"))
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "found.py").write_text(
        "import sys, tokenize; print(tokenize.__file__, *sys.argv[1:])"
    )

    done = subprocess.run(
        module_command("found", "one", "two"), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    file, *arguments = done.stdout.split()
    assert Path(file).parent != tmp_path
    assert arguments == ["one", "two"]


def test_every_module_that_the_package_starts_is_started_so():
    own = {"launch/processes.py", "launch/fork_server.py"}
    others = (path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) not in own)
    assert [path for path in others if '"-m"' in path.read_text(encoding="utf-8")] == []
    scripts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.sbatch.j2")]
    assert all("{% endfor %} -P)" in script for script in scripts if " -m megatune" in script)
