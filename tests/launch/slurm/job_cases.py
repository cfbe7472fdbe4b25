"""Requests for jobs as tests need them: by run file and site profile, without Slurm."""

from pathlib import Path
from typing import Any

import yaml

from megatune.launch.slurm.array import load_one
from megatune.launch.slurm.request import JobRequest, RunToSubmit, build_request, join_requests
from megatune.launch.slurm.site import SiteProfile

PYTHON = "/opt/python/bin/python3"
WORKING_DIR = Path("/home/me/project")


def write_run(path: Path, **sections: Any) -> Path:
    """A run file with what must be in it; `sections`, or single entries, go on top."""
    document: dict[str, Any] = {
        "model": {"model_name_or_path": "gpt2"},
        "data": {"train": "train.jsonl"},
        "train": {"output_dir": "/home/me/project/runs/first"},
        "checkpoint": {"save_steps": 100},
        "slurm": {"gpus_per_node": 4, "cpus_per_task": 8, "time": "04:00:00"},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(document))  # escaped: PyYAML folds U+0085 where it writes it bare
    return path


def run_of(folder: Path, **sections: Any) -> RunToSubmit:
    """The loaded run of `write_run`; its folder as the file says."""
    return load_one(write_run(folder / "run.yaml", **sections), [])


def request_of(
    folder: Path,
    site: dict[str, Any] | None = None,
    *,
    working_dir: Path = WORKING_DIR,
    **sections: Any,
) -> JobRequest:
    """The request for a run on a site, both given as their sections."""
    profile = SiteProfile.model_validate(site) if site is not None else None
    return build_request(run_of(folder, **sections), profile, python=PYTHON, working_dir=working_dir)


def array_of(
    folder: Path, names: list[str], site: dict[str, Any] | None = None, **sections: Any
) -> JobRequest:
    """The request for an array of runs whose folders have `names`."""
    return join_requests(
        [
            request_of(folder, site, **{**sections, "train": {"output_dir": f"/home/me/project/runs/{name}"}})
            for name in names
        ]
    )
