"""What the user can get wrong, through the real command line: a message that names the fix, and nothing half done."""

import json
from pathlib import Path

import pytest
from command_line import (
    Done,
    assert_nothing_looks_complete,
    assert_refused,
    megatune,
    write_model,
)
from safetensors.torch import load_file, save_file


def refused(run_file: Path, output_dir: Path, overrides: list[str], *words: str) -> Done:
    """Train with `overrides`: it is refused and leaves nothing that looks complete."""
    done = megatune("train", run_file, *overrides)
    assert_refused(done, *words)
    assert_nothing_looks_complete(output_dir)
    return done


def test_a_missing_run_file_is_named_with_the_command_that_writes_one(tmp_path):
    done = megatune("train", tmp_path / "none.yaml")
    assert_refused(done, "none.yaml", "no such file", "megatune init")


def test_several_mistakes_are_told_at_once(run_file, output_dir):
    overrides = ["train.learning_rate=-1", "precision=fp8", "data.max_sequence=12"]
    refused(run_file, output_dir, overrides, "3 problems", "learning_rate", "precision", "max_seq_length")


def test_a_missing_data_file_is_named_with_its_neighbours(run_file, rows_file, output_dir):
    wrong = rows_file.with_name("row.jsonl")
    refused(run_file, output_dir, [f"data.train={wrong}"], "data.train", str(wrong), "rows.jsonl")


def test_an_empty_data_set_is_refused(run_file, output_dir, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    refused(run_file, output_dir, [f"data.train={empty}"], "data.train is empty")


def test_a_row_without_the_column_is_named_with_its_line_and_the_mapping(run_file, output_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good"}\n{"txt": "bad"}\n')
    refused(run_file, output_dir, [f"data.train={rows}"], "rows.jsonl:2", "txt", "data.train.columns")


def test_a_sequence_longer_than_the_positions_is_refused_with_the_longest(run_file, output_dir):
    refused(run_file, output_dir, ["data.max_seq_length=65"], "max_seq_length = 65", "Use 64 or less")


def test_a_tokenizer_larger_than_the_embedding_is_refused(run_file, output_dir, session_folder):
    small = write_model(session_folder, vocab_size=101, bos_token_id=0, eos_token_id=0)
    wrong = [f"model.model_name_or_path={small}"]
    refused(run_file, output_dir, wrong, "101 rows", "larger than the embedding", "model.tokenizer")


def test_an_end_token_that_is_also_the_padding_is_trained(run_file):
    done = megatune("prepare", run_file, "--preview", 1)
    assert done.code == 0, done.text
    assert "[<|im_end|>]" in done.out


def test_a_degree_that_does_not_divide_the_ranks_is_refused_with_those_that_do(run_file, output_dir):
    overrides = ["parallel.tp_size=3", "launch.nproc_per_node=4"]
    refused(run_file, output_dir, overrides, "does not divide the 4 ranks", "1, 2, 4")


def test_a_family_without_a_plan_is_refused_under_tensor_parallelism(run_file, output_dir, model_copy):
    config = {"model_type": "nemotron", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 400, "max_position_embeddings": 64}  # fmt: skip
    (model_copy / "config.json").write_text(json.dumps(config))
    overrides = [f"model.model_name_or_path={model_copy}", "parallel.tp_size=2", "launch.nproc_per_node=2"]
    refused(run_file, output_dir, overrides, "nemotron", "will not guess", "parallel.tp_size=1 works")


def test_more_ranks_than_heads_are_refused(run_file, output_dir, session_folder):
    phi = write_model(session_folder, "phi3", num_key_value_heads=1)
    overrides = [f"model.model_name_or_path={phi}", "parallel.tp_size=2", "launch.nproc_per_node=2"]
    refused(run_file, output_dir, overrides, "1 key-value head", "cannot share", "Use parallel.tp_size=1")


def test_a_missing_model_folder_is_named(run_file, output_dir, tmp_path):
    wrong = tmp_path / "no-model"
    refused(run_file, output_dir, [f"model.model_name_or_path={wrong}"], "no folder", str(wrong))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no weights at all", "model.initialize=random"]),
        ({"pytorch_model.bin": b"pickle"}, ["pytorch_model.bin", "save_pretrained"]),
        ({"model.safetensors": b"\x10\0\0\0\0\0\0\0{"}, ["not a whole safetensors file"]),
    ],
    ids=["none", "pickled", "cut off"],
)
def test_weights_that_cannot_be_used_are_refused_before_any_rank_starts(
    run_file, output_dir, model_copy, files, words
):
    (model_copy / "model.safetensors").unlink()
    for name, content in files.items():
        (model_copy / name).write_bytes(content)
    refused(run_file, output_dir, [f"model.model_name_or_path={model_copy}"], *words)
    assert not (output_dir / "logs").exists()


def test_weights_that_are_missing_from_the_files_are_named(run_file, output_dir, model_copy):
    weights = load_file(model_copy / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})

    done = megatune("train", run_file, f"model.model_name_or_path={model_copy}")

    assert_refused(done, "transformer.h.1.mlp.c_fc.weight", "random values")
    assert done.text.count("would be trained from random values") == 1, "told once, not by every rank"
    assert not list((output_dir / "checkpoints").iterdir())


def test_a_model_without_tokenizer_is_refused_with_the_key_that_gives_one(run_file, output_dir, model_copy):
    for path in model_copy.glob("*token*"):
        path.unlink()
    (model_copy / "chat_template.jinja").unlink()
    refused(run_file, output_dir, [f"model.model_name_or_path={model_copy}"], "tokenizer", "model.tokenizer")


@pytest.mark.parametrize("command", ["prepare", "verify"])
def test_the_other_commands_refuse_the_same_mistakes(run_file, command):
    assert_refused(megatune(command, run_file, "data.max_seq_length=65"), "Use 64 or less")


def test_verify_without_steps_is_refused(run_file):
    assert_refused(megatune("verify", run_file, "--steps", 0), "--steps is 0", "1 or more")


def test_export_names_the_dtypes_there_are(tmp_path):
    done = megatune("export", tmp_path, tmp_path / "out", "--dtype", "int8")
    assert_refused(done, "'int8'", "bf16, fp16, fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "no folder"])
def test_export_of_something_that_is_no_run_says_what_it_needs(tmp_path, exists):
    source = tmp_path / "source"
    if exists:
        source.mkdir()
    done = megatune("export", source, tmp_path / "out")
    assert_refused(done, str(source), "neither a checkpoint nor a run folder")
    assert not (tmp_path / "out").exists()


def test_generate_names_the_folder_that_is_missing(tmp_path):
    assert_refused(megatune("generate", tmp_path / "none", "-p", "Hi"), "no model folder", "none")


def test_generate_refuses_a_folder_that_holds_no_model(tmp_path):
    assert_refused(megatune("generate", tmp_path, "-p", "Hi"), str(tmp_path))


def test_what_a_command_says_of_its_own_line_begins_with_its_name_once(model_copy, tmp_path):
    done = megatune("generate", model_copy, "--file", tmp_path / "none.txt")
    assert done.err.startswith("megatune generate: --file"), done.err

    done = megatune("evaluate", model_copy, "--split", "dev", "--answers", tmp_path / "none" / "a.jsonl")
    assert done.err.startswith("megatune evaluate has 3 problems:"), done.err


def test_generate_without_a_chat_template_says_to_leave_chat_out(model_copy):
    (model_copy / "chat_template.jinja").unlink()
    assert_refused(megatune("generate", model_copy, "--chat", "-p", "Hi"), "no chat template", "--chat")


def test_report_of_something_that_is_no_run_says_what_it_needs(tmp_path):
    assert_refused(megatune("report", tmp_path), "no run folder", "train.output_dir")


def test_an_unknown_task_is_refused_by_init():
    assert_refused(megatune("init", "--task", "songs"), "songs", "text, dialogue")


def test_an_output_folder_that_is_a_file_is_refused(run_file, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert_refused(megatune("train", run_file, f"train.output_dir={taken}"), str(taken), "another path")
    assert taken.read_text() == "mine"


def test_a_launcher_that_cannot_be_used_here_is_refused(run_file, output_dir):
    done = megatune("train", run_file, "launch.nodes=2")
    assert done.code == 2
    assert "torchrun --nnodes 2" in done.text
    assert "Traceback" not in done.text
    assert not output_dir.exists()
