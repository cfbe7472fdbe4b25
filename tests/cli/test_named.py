"""Problems that are found where a run file's path is not known are told with it."""

from pathlib import Path

import pytest

from megatune.cli.named import names_run_file
from megatune.cli.train import train_run
from megatune.errors import ConfigError

RUN = """
model: {model_name_or_path: m}
data: {train: t.jsonl}
train: {output_dir: out}
launch: {nproc_per_node: 1}
"""


def test_a_problem_without_a_place_is_told_of_the_run_file_and_others_keep_theirs() -> None:
    @names_run_file
    def refuse(run_file: Path, source: str | None) -> None:
        del run_file
        raise ConfigError(["this is wrong"], source=source)

    for source, told in ((None, "my/run.yaml: this is wrong"), ("--eta", "--eta: this is wrong")):
        with pytest.raises(ConfigError) as refused:
            refuse(Path("my/run.yaml"), source)
        assert str(refused.value) == told


def test_train_names_it_for_what_it_finds_once_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    with pytest.raises(ConfigError, match="there is no such folder here") as refused:
        train_run(path, ["parallel.offload=nvme:/missing", f"train.output_dir={tmp_path / 'run'}"])
    assert str(refused.value).startswith(f"{path}: parallel.offload = nvme:/missing: ")
