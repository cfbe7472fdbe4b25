"""An exported folder is a plain Hugging Face model that computes what the trained engine computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import probe, train_and_save
from safetensors.torch import load_file
from small_disks import free_bytes, leave_free
from tiny_models import write_tiny_model
from transformers import AutoModelForCausalLM
from worlds import Worlds

from megatune.checkpoint import export
from megatune.checkpoint.export import export_checkpoint, replace_export
from megatune.checkpoint.manifest import read_manifest, render_manifest
from megatune.cli.export import export_run
from megatune.errors import CheckpointError, DataError, ExportError
from megatune.launch.checkpoints import MANIFEST, folder_name

pytestmark = pytest.mark.world

MODELS = ["gpt2", "gpt2-5-heads", "llama", "llama-tied-9-heads", "gpt_neox", "falcon", "qwen2_moe"]
DEGREES = [1, 2]

Saved = dict[tuple[str, int], tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def saved(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """(model, tp) at dp=2 -> (checkpoint, the engine's logits)."""
    folders = {name: str(write_tiny_model(name, session_folder)) for name in MODELS}
    found: Saved = {}
    for tp in DEGREES:
        checkpoints = str(tmp_path_factory.mktemp(f"export-tp{tp}"))
        first = worlds.run(2 * tp, train_and_save, folders, tp, checkpoints)[0]
        found |= {(name, tp): (Path(path), logits) for name, (path, logits) in first.items()}
    return found


def logits_of(folder: Path, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """What `from_pretrained` alone makes of the folder."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model.eval()(probe()).logits.float().numpy()


@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize("model", MODELS)
def test_from_pretrained_computes_the_logits_of_the_trained_engine(
    saved: Saved, session_folder: Path, tmp_path: Path, model: str, tp: int
) -> None:
    checkpoint, expected = saved[model, tp]

    count = export_checkpoint(checkpoint, tmp_path / "out", dtype=torch.float32)

    found = logits_of(tmp_path / "out")
    np.testing.assert_allclose(found, expected, atol=2e-5)
    untrained = logits_of(write_tiny_model(model, session_folder))
    assert np.abs(found - untrained).max() > 0.05, "training must have moved the logits"
    assert count == AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters()
    assert not (tmp_path / "out.tmp").exists()


def test_small_files_have_an_index_and_load_the_same(saved: Saved, tmp_path: Path) -> None:
    checkpoint, expected = saved["gpt2", 2]

    export_checkpoint(checkpoint, tmp_path / "out", dtype=torch.float32, shard_bytes=60_000)

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    tensors = {name: load_file(tmp_path / "out" / file) for file in files for name in [file]}
    assert index["weight_map"] == {name: file for file, held in tensors.items() for name in held}
    total = sum(tensor.nbytes for held in tensors.values() for tensor in held.values())
    assert index["metadata"]["total_size"] == total
    for held in tensors.values():
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 60_000
    np.testing.assert_allclose(logits_of(tmp_path / "out"), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_and_config_have_the_dtype_asked_for(
    saved: Saved, tmp_path: Path, dtype: torch.dtype
) -> None:
    checkpoint, expected = saved["llama", 2]

    export_checkpoint(checkpoint, tmp_path / "out", dtype=dtype)

    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix(
        "torch."
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype
    assert np.abs(logits_of(tmp_path / "out") - expected).max() < 0.05  # weights rounded once


def test_an_existing_target_is_refused_and_left_alone(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes").write_text("precious")

    with pytest.raises(ExportError, match=r"mine is already there; give another folder"):
        export_checkpoint(saved["llama", 1][0], target, dtype=torch.float32)

    assert [path.name for path in target.iterdir()] == ["notes"]


def test_a_new_export_takes_the_place_of_the_last_one(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "export"
    replace_export(saved["gpt2", 1][0], target, dtype=torch.float32)

    replace_export(saved["llama", 1][0], target, dtype=torch.float32)

    np.testing.assert_allclose(logits_of(target), saved["llama", 1][1], atol=2e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_flipped_bit_in_a_rank_file_is_not_exported(saved: Saved, tmp_path: Path) -> None:
    file = saved["gpt_neox", 1][0] / "rank-00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    try:
        with pytest.raises(CheckpointError, match=r"rank-00001.safetensors has changed since it was saved"):
            export_checkpoint(file.parent, tmp_path / "out", dtype=torch.float32)
    finally:
        file.write_bytes(whole)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_checkpoint_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a whole checkpoint: no manifest.json"):
        export_checkpoint(tmp_path, tmp_path / "out", dtype=torch.float32)


def test_a_full_disk_leaves_nothing_of_an_export_and_names_the_way_out(
    saved: Saved, small_disk: Path
) -> None:
    leave_free(small_disk, 60_000)  # room for the configuration, not for the weights
    before = free_bytes(small_disk)

    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(saved["llama", 1][0], small_disk / "out", dtype=torch.float32)

    assert f"{small_disk} has 5" in str(caught.value), "the space that is free again"
    assert "No space left on device" in str(caught.value)
    assert "megatune export RUN TARGET" in str(caught.value)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    assert free_bytes(small_disk) == before


@pytest.mark.parametrize("moment", ["WholeTensors", "_write_shards"])
def test_of_a_run_that_removes_its_checkpoint_meanwhile_the_next_is_exported(
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    checkpoint, expected = saved["gpt2", 1]
    manifest = read_manifest(checkpoint)
    older, newer = (tmp_path / "run/checkpoints" / folder_name(manifest.step + later) for later in (0, 1))
    for folder in (older, newer):
        shutil.copytree(checkpoint, folder)
    (newer / MANIFEST).write_bytes(render_manifest(replace(manifest, step=manifest.step + 1)))
    real = getattr(export, moment)

    def beside_a_prune(*arguments: Any, **options: Any) -> Any:
        if newer.exists():
            shutil.rmtree(newer)
        return real(*arguments, **options)

    monkeypatch.setattr(export, moment, beside_a_prune)
    export_run(tmp_path / "run", tmp_path / "out", "fp32")

    told = capsys.readouterr()
    assert f"{newer} was removed meanwhile" in told.err
    assert f"exported {older}" in told.out
    np.testing.assert_allclose(logits_of(tmp_path / "out"), expected, atol=2e-5)

    shutil.rmtree(older)
    with pytest.raises(DataError, match="neither a checkpoint nor a run folder with one"):
        export_run(tmp_path / "run", tmp_path / "again", "fp32")
