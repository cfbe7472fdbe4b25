"""Going on with another setting: refused with a diff, taken with --allow-change."""

from pathlib import Path

import pytest
from command_line import megatune, steps_of

pytestmark = pytest.mark.world


def test_a_changed_setting_is_shown_as_a_diff_and_taken_only_when_allowed(
    run_file: Path, output_dir: Path
) -> None:
    one = ("train", run_file, "launch.nproc_per_node=1", "checkpoint.export_at_end=false")
    assert megatune(*one, "train.max_steps=2").code == 0
    changed = (*one, "train.max_steps=3", "train.learning_rate=0.5", "train.weight_decay=0.25")

    refused = megatune(*changed)

    assert refused.code == 2
    assert "train.learning_rate: saved " in refused.text
    assert ", this run 0.5" in refused.text
    assert "train.weight_decay: saved 0.0, this run 0.25" in refused.text
    assert "--allow-change" in refused.text
    assert "Traceback" not in refused.text
    assert len(steps_of(output_dir)) == 2

    assert megatune(*changed, "--allow-change").code == 0
    assert len(steps_of(output_dir)) == 3
