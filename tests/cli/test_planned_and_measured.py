"""On a CPU the planner's memory is met: states byte for byte, the whole process within a tenth."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import megatune, write_model

pytestmark = pytest.mark.world

ASSETS = Path(__file__).parents[2] / "assets"


def compared(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """What `megatune report` says of a run of a few steps."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps({"text": "one two three four five " * 200}) + "\n") * 16)
    run: dict[str, Any] = {
        "data": {"train": str(rows), "packing": False},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 2},
        "checkpoint": {"save_at_end": False, "export_at_end": False},
    }
    for name, values in sections.items():
        run[name] = {**run.get(name, {}), **values} if isinstance(values, dict) else values
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    done = megatune("train", path)
    assert done.code == 0, done.text
    assert "planned and measured" in done.text
    found: dict[str, Any] = json.loads(megatune("report", tmp_path / "run", "--json").out)["planned"]
    return found


def assert_met(found: dict[str, Any]) -> None:
    for name in ("weights", "gradients", "optimizer"):
        assert found[name]["estimated"] == found[name]["measured"] > 0, name
    assert abs(found["total"]["error"]) < 0.10, found


@pytest.mark.parametrize(("stage", "num_ranks"), [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_a_tiny_model_is_met(session_folder: Path, tmp_path: Path, stage: int, num_ranks: int) -> None:
    model = write_model(session_folder, "llama", bos_token_id=0, eos_token_id=0)
    found = compared(
        tmp_path,
        model={"model_name_or_path": str(model)},
        data={"max_seq_length": 64},
        parallel={"zero_stage": stage},
        launch={"nproc_per_node": num_ranks},
    )
    assert_met(found)


@pytest.mark.real_model
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel": {"zero_stage": 2}, "launch": {"nproc_per_node": 2}},
        {"parallel": {"zero_stage": 3}, "launch": {"nproc_per_node": 2}},
        {"parallel": {"tp_size": 2}, "launch": {"nproc_per_node": 4}},
        {"parallel": {"offload": "optimizer"}, "launch": {"nproc_per_node": 2}},
    ],
    ids=["stage 2", "stage 3", "dp=2 x tp=2", "offload"],
)
def test_smollm2_is_met(tmp_path: Path, layout: dict[str, Any]) -> None:
    """134.5 M parameters in bf16, 512 tokens at a time."""
    if not (ASSETS / "smollm2-135m").is_dir():
        pytest.skip("make demo fetches the model")
    found = compared(
        tmp_path,
        model={"model_name_or_path": str(ASSETS / "smollm2-135m")},
        data={"max_seq_length": 512},
        train={"gradient_accumulation_steps": 2},
        **layout,
    )
    assert_met(found)
    assert found["what steps add"]["measured"] > 2**29
    if "shared memory" in found:
        assert abs(found["shared memory"]["error"]) < 0.02, found
