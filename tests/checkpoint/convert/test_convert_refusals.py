"""What is not exactly a checkpoint of the model is refused with names, and no file of it is ever run."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_tiny_model
from written_deepspeed import NAMES, write_universal_folder, write_zero_folder

from megatune.checkpoint.convert.pickles import load_pickle
from megatune.checkpoint.whole import WholeTensors
from megatune.cli.convert import convert_checkpoint
from megatune.errors import CheckpointError, ConfigError, ConvertError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("gpt2", tmp_path_factory.mktemp("model"), n_layer=1)


def convert(source: Path, target: Path, model: Path | None, *, thaw: bool = False) -> Path:
    convert_checkpoint(source, target, to="megatune", model=model, thaw=thaw)
    (folder,) = (target / "checkpoints").iterdir()
    return folder


class Bomb:
    """Makes a file when it is unpickled by a loader that runs what it finds."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_the_bomb_goes_off_where_pickles_are_trusted(tmp_path: Path) -> None:
    torch.save({"x": Bomb(tmp_path / "boom")}, tmp_path / "file.pt")

    torch.load(tmp_path / "file.pt", weights_only=False)

    assert (tmp_path / "boom").is_dir()


ZERO_FILES = [
    "zero_pp_rank_0_mp_rank_00_model_states.pt",
    "zero_pp_rank_1_mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
]
UNIVERSAL_FILES = [
    "zero_pp_rank_0_mp_rank_00_model_states.pt",
    "zero/optimizer_state.pt",
    *(f"zero/transformer.wte.weight/{kind}.pt" for kind in ("fp32", "exp_avg", "exp_avg_sq")),
]


@pytest.mark.parametrize(
    ("universal", "file"),
    [*((False, file) for file in ZERO_FILES), *((True, file) for file in UNIVERSAL_FILES)],
)
def test_a_bomb_in_any_file_is_named_and_never_runs(
    tmp_path: Path, model: Path, universal: bool, file: str
) -> None:
    source = (write_universal_folder if universal else write_zero_folder)(tmp_path / "ck", model)
    held = torch.load(source / file, weights_only=False)
    planted = (
        {**held, "client_state": Bomb(tmp_path / "boom")}
        if isinstance(held, dict)
        else [held, Bomb(tmp_path / "boom")]
    )
    torch.save(planted, source / file)

    with pytest.raises(
        ConvertError, match=rf"{Path(file).name} names (posix|nt)\.mkdir, .*could run code"
    ) as caught:
        convert(source, tmp_path / "run", model)

    assert caught.value.exit_code == 2
    assert not (tmp_path / "boom").exists()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a pickle")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(1000)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:2000])

    for name in ("text.pt", "old.pt", "cut.pt", "none.pt"):
        with pytest.raises(ConvertError, match=name):
            load_pickle(tmp_path / name)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_wrapped_model_are_unwrapped(tmp_path: Path, model: Path, prefix: str) -> None:
    plain = convert(write_zero_folder(tmp_path / "plain", model), tmp_path / "a", model)
    wrapped = convert(write_zero_folder(tmp_path / "ck", model, prefix=prefix), tmp_path / "b", model)

    first, second = WholeTensors(plain), WholeTensors(wrapped)
    assert first.shapes == second.shapes
    for kind in first.kinds:
        assert all(torch.equal(first.read(kind, name), second.read(kind, name)) for name in first.shapes)


def test_the_other_name_of_a_tied_weight_is_understood(tmp_path: Path, model: Path) -> None:
    source = write_universal_folder(tmp_path / "ck", model)
    (source / "zero/transformer.wte.weight").rename(source / "zero/lm_head.weight")

    whole = WholeTensors(convert(source, tmp_path / "run", model))

    assert "transformer.wte.weight" in whole.shapes


def test_everything_that_does_not_fit_is_named_at_once(tmp_path: Path, model: Path) -> None:
    source = write_universal_folder(tmp_path / "ck", model)
    zero = source / "zero"
    shutil.copytree(zero / NAMES[0], zero / "extra.weight")
    shutil.rmtree(zero / NAMES[1])
    torch.save({"param": torch.ones(7)}, zero / NAMES[2] / "fp32.pt")

    with pytest.raises(ConvertError) as caught:
        convert(source, tmp_path / "run", model)

    text = str(caught.value)
    assert f"1 parameters of the model are missing: {NAMES[1]}" in text
    assert "1 are not in the model: extra.weight" in text
    assert f"1 have another shape: (7,) of {NAMES[2]}" in text
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_are_named_and_come_along_when_asked(tmp_path: Path, model: Path) -> None:
    source = write_zero_folder(tmp_path / "ck", model, frozen=NAMES[0])

    with pytest.raises(ConvertError, match=rf"1 parameters were not trained .*{NAMES[0]}.*--thaw"):
        convert(source, tmp_path / "run", model)

    whole = WholeTensors(convert(source, tmp_path / "run", model, thaw=True))
    assert whole.read("weight", NAMES[0]).abs().sum() > 0
    assert whole.read("exp_avg", NAMES[0]).abs().sum() == 0


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000002"])
def test_what_is_megatunes_already_is_told_where_it_can_go(tmp_path: Path, model: Path, place: str) -> None:
    converted = convert(write_universal_folder(tmp_path / "universal", model), tmp_path / "run", model)
    assert converted.name == "step-00000002"
    with pytest.raises(ConvertError, match=r"is megatune's already\. --to deepspeed-universal"):
        convert(tmp_path / "run" / place, tmp_path / "again", model)


def test_a_missing_rank_is_named(tmp_path: Path, model: Path) -> None:
    source = write_zero_folder(tmp_path / "ck", model)
    (source / ZERO_FILES[2]).unlink()

    with pytest.raises(ConvertError, match=rf"not whole: {ZERO_FILES[2]} is missing"):
        convert(source, tmp_path / "run", model)


@pytest.mark.parametrize("stage", [1, 2])
def test_another_stage_is_refused_with_the_way_round(tmp_path: Path, model: Path, stage: int) -> None:
    source = write_zero_folder(tmp_path / "ck", model, stage=stage)

    with pytest.raises(ConvertError, match=rf"ZeRO stage {stage}.*ds_to_universal"):
        convert(source, tmp_path / "run", model)


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    source = write_universal_folder(tmp_path / "ck", model)
    path = source / "zero" / NAMES[3] / "fp32.pt"
    held = torch.load(path)
    held["param"].view(-1)[-1] = float("nan")
    torch.save(held, path)

    with pytest.raises(ConvertError, match=rf"{NAMES[3]} holds values that are not finite"):
        convert(source, tmp_path / "run", model)

    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_hint_that_leads_out_of_its_folder_is_refused(tmp_path: Path, model: Path) -> None:
    write_zero_folder(tmp_path / "elsewhere", model)
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck/latest").write_text("../elsewhere")

    with pytest.raises(ConvertError, match="no folder beside it: refused"):
        convert(tmp_path / "ck", tmp_path / "run", model)


def test_the_folder_above_the_step_and_a_model_beside_it_are_found(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "checkpoint-2")
    write_zero_folder(tmp_path / "checkpoint-2/global_step2", model)
    (tmp_path / "checkpoint-2/latest").write_text("global_step2")
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{}")

    folder = convert(tmp_path / "checkpoint-2", tmp_path / "run", None)

    assert folder.name == "step-00000002"
    held = {path.name for path in (folder / "model").iterdir()}
    assert "config.json" in held
    assert "trainer_state.json" not in held


def test_mistakes_of_the_command_line_are_named(tmp_path: Path, model: Path) -> None:
    source = write_zero_folder(tmp_path / "ck", model)

    with pytest.raises(ConfigError, match="Use one of megatune, deepspeed-universal"):
        convert_checkpoint(source, tmp_path / "run", to="megatron", model=model, thaw=False)
    with pytest.raises(ConvertError, match=r"no config.json beside it.*--model FOLDER"):
        convert(source, tmp_path / "run", None)
    with pytest.raises(ConvertError, match="no checkpoint that can be converted"):
        convert(model, tmp_path / "run", model)
    convert(source, tmp_path / "run", model)
    with pytest.raises(ConvertError, match="is already there"):
        convert(source, tmp_path / "run", model)


def test_a_damaged_checkpoint_does_not_leave(tmp_path: Path, model: Path) -> None:
    folder = convert(write_zero_folder(tmp_path / "ck", model), tmp_path / "run", model)
    file = folder / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1
    file.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors has changed"):
        convert_checkpoint(
            tmp_path / "run", tmp_path / "out", to="deepspeed-universal", model=None, thaw=False
        )

    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()
