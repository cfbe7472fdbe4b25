"""`megatune verify` as a user runs it: it passes what is right, and finds what is planted."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from parity_steps import tiny_run
from tiny_models import TINY, write_tiny_model, write_tiny_model_with_images

from megatune.launch.ranks import child_environment
from megatune.model.build import build_model
from megatune.model.heads import HeadSpec
from megatune.model.source import open_source
from megatune.train.verify.compare import TOLERANCES, compare
from megatune.train.verify.model import bytes_per_param, count_params, shrunken_config, without_dropout
from megatune.train.verify.trace import Trace, write_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from tiny_tokenizers import byte_level, fast

VOCABULARY = 400


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Row {n}: " + "once upon a time " * (n % 5)}) + "\n" for n in range(60))
    )
    return path


def write_run(folder: Path, model: Path, rows: Path, precision: str) -> Path:
    """Three steps at tp=2 on two ranks, with the optimizer that users have."""
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": str(rows), "max_seq_length": 64},
        "train": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "max_steps": 20,
        },
        "parallel": {"tp_size": 2},
        "precision": precision,
        "launch": {"nproc_per_node": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def write_model(folder: Path, name: str, **changes: object) -> Path:
    path = write_tiny_model(name, folder, vocab_size=VOCABULARY, **changes)
    fast(byte_level(VOCABULARY)).save_pretrained(path)
    return path


def verify(run_file: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatune", "verify", str(run_file), "--steps", "3", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=child_environment(environment),
        check=False,
    )


@pytest.mark.world
def test_a_layout_that_is_right_passes_for_a_model_with_dropout(session_folder, rows_file, tmp_path):
    dropout = {"resid_pdrop": 0.1, "attn_pdrop": 0.2}
    model = write_model(session_folder, "gpt2", bos_token_id=0, eos_token_id=0, **dropout)

    done = verify(write_run(tmp_path, model, rows_file, "fp32"), "--json")

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    assert answer["passed"] is True
    assert [row["layout"] for row in answer["rows"]] == ["tp=1,dp=2", "tp=2,dp=1"]
    for row in answer["rows"]:
        assert row["passed"] is True
        assert row["loss_max_rel"] < 1e-5
        assert row["grad_norm_max_rel"] < 1e-4
        assert "Stage3" in row["engine"]
    assert "1 process" in answer["reference"]
    assert "DeepSpeed" not in answer["reference"]
    (note,) = answer["notes"]
    assert "attn_pdrop, resid_pdrop" in note or "resid_pdrop, attn_pdrop" in note
    assert not list((tmp_path / "run").glob(".verify-*")), "the traces are gone"


@pytest.mark.parametrize(
    ("precision", "optimizer", "momentum", "expected"),
    [
        ("fp32", "adamw", 0.0, 16),
        ("bf16", "adamw", 0.0, 20),
        ("fp32", "sgd", 0.9, 12),
        ("bf16", "sgd", 0.0, 12),
    ],
)
def test_the_reference_is_counted_with_masters_and_moments(precision, optimizer, momentum, expected):
    train = {"optimizer": optimizer, "momentum": momentum}
    assert bytes_per_param(tiny_run("model", precision=precision, train=train)) == expected


# Qwen3's query and key norms see only a rank's own heads; their gradients are summed over the group.
BROKEN = """
import dataclasses
from megatune.plan.families import FAMILIES
FAMILIES["qwen3"] = dataclasses.replace(FAMILIES["qwen3"], partial_gradients=())
"""


@pytest.mark.world
def test_a_gradient_that_is_not_summed_over_the_group_fails_on_that_axis_alone(
    session_folder, rows_file, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    run_file = write_run(tmp_path, write_model(session_folder, "qwen3"), rows_file, "fp32")

    done = verify(run_file, PYTHONPATH=str(tmp_path))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "tp=2,dp=1 is not the reference: first at step" in done.stdout
    assert "norm.weight" in done.stdout, "the weight that is wrong is named"
    assert "tp=1,dp=2 is not" not in done.stdout
    assert "NOT" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.world
def test_bf16_of_a_shrunken_model_passes_and_says_what_was_shrunk(session_folder, rows_file, tmp_path):
    model = write_model(
        session_folder,
        "llama",
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=4,
        intermediate_size=1536,
    )

    done = verify(write_run(tmp_path, model, rows_file, "bf16"), "--shrink", "--json")

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["passed"] is True
    assert "num_hidden_layers 4 -> 2" in answer["notes"][0]
    assert "hidden_size 1024 -> 256" in answer["notes"][0]
    assert 0 < answer["rows"][1]["loss_max_rel"] <= TOLERANCES["bf16"].loss


def test_a_model_that_does_not_fit_one_process_is_refused_and_shrink_is_named(
    session_folder, rows_file, tmp_path
):
    model = write_model(session_folder, "gpt2", bos_token_id=0, eos_token_id=0)
    huge = tmp_path / "huge"
    huge.mkdir()
    for path in model.glob("token*"):
        (huge / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text())
    (huge / "config.json").write_text(json.dumps({**config, "n_embd": 32768, "n_layer": 90}))
    run_file = write_run(tmp_path, huge, rows_file, "bf16")

    done = verify(run_file, "model.initialize=random")

    assert done.returncode == 2, done.stderr
    assert "x 20 bytes" in done.stderr
    assert "--shrink" in done.stderr
    assert "Traceback" not in done.stderr


def test_dropout_is_switched_off_and_nothing_else_is_changed(session_folder, tmp_path):
    source = open_source(write_tiny_model("opt", session_folder, dropout=0.1, layerdrop=0.05))

    folder, names = without_dropout(source, tmp_path / "model")

    assert sorted(names) == ["dropout", "layerdrop"]
    before, after = source.config_dict(), open_source(folder).config_dict()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"dropout", "layerdrop", "_name_or_path"}  # the last is the folder itself
    assert (folder / "model.safetensors").samefile(source.folder / "model.safetensors")


def test_a_model_without_dropout_is_used_where_it_is(session_folder, tmp_path):
    source = open_source(write_tiny_model("llama", session_folder))
    assert without_dropout(source, tmp_path / "model") == (source.folder, [])


@pytest.mark.parametrize("family", TINY)
def test_every_family_can_be_shrunk_to_two_layers_with_its_heads(family, session_folder):
    layers = "num_layers" if family == "gpt_neo" else "num_hidden_layers"
    layers = "n_layer" if family in ("gpt2", "gpt2-5-heads", "gptj", "bloom") else layers
    per_layer = {"attention_types": [[["global", "local"], 2]]} if family == "gpt_neo" else {}
    per_layer |= {
        key: TINY[family][1][key] * 2 for key in ("layer_types", "no_rope_layers") if key in TINY[family][1]
    }
    source = open_source(write_tiny_model(family, session_folder, **{layers: 4}, **per_layer))

    config, changes = shrunken_config(source, num_tokens=90)

    assert f"{layers} 4 -> 2" in changes
    assert "vocab_size 101 -> 90" in changes or config.vocab_size <= 101
    small = build_from(config, session_folder / f"shrunk-{family}")
    assert small.num_layers == 2
    assert (small.num_heads, small.num_kv_heads) == (source.shape.num_heads, source.shape.num_kv_heads)


def test_a_model_with_images_is_shrunk_with_its_tower(session_folder):
    layers = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "vocab_size": 120}
    source = open_source(write_tiny_model_with_images(session_folder, **layers))
    source.config.vision_config.num_hidden_layers = 5

    config, changes = shrunken_config(source, num_tokens=90)

    assert {"num_hidden_layers 4 -> 2", "vocab_size 120 -> 90", "vision_config: 2 layers"} <= set(changes)
    assert build_from(config, session_folder / "shrunk-with-images").num_layers == 2
    assert config.vision_config.num_hidden_layers == 2


def build_from(config, folder):
    """Save the config, and read it back as any model is."""
    config.save_pretrained(folder)
    source = open_source(folder)
    assert count_params(source) > 0
    build_model(source, dtype=torch.float32, initialize="random")
    return source.shape


def test_wide_models_are_narrowed_in_proportion_and_keep_the_ids_of_the_tokenizer(session_folder):
    wide = {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 5504,
    }
    source = open_source(config_only(session_folder / "wide", {**wide, "vocab_size": 32000}))

    config, changes = shrunken_config(source, num_tokens=20000)

    assert (config.hidden_size, config.intermediate_size) == (256, 688)
    assert (config.num_attention_heads, config.num_key_value_heads) == (16, 4)
    assert config.vocab_size == 20000
    assert "hidden_size 2048 -> 256" in changes


def config_only(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 8, **config}))
    return folder


def trace(folder: Path, *, loss: float = 2.0, norm: float = 1.0, weight: float = 0.5) -> tuple[Path, Trace]:
    """Two steps that moved one weight of two elements from 0 to (`weight`, 1)."""
    before = write_weights(folder / "before", [("w", torch.zeros(2))], keep=True)
    after = write_weights(folder / "after", [("w", torch.tensor([weight, 1.0]))], keep=True)
    found = Trace(
        engine="e",
        losses=[2.0, loss],
        grad_norms=[1.0, norm],
        learning_rates=[1.0, 1.0],
        skipped=0,
        weights=after,
        initial_weights=before,
    )
    return folder, found


@pytest.mark.parametrize(
    ("change", "passes", "step"),
    [
        ({}, True, None),
        ({"loss": 2.00001}, True, None),
        ({"loss": 2.00004}, False, 2),
        ({"norm": 1.00005}, True, None),
        ({"norm": 1.0002}, False, 2),
        ({"weight": 0.501}, True, None),
        ({"weight": 0.55}, False, None),
        ({"loss": float("nan")}, False, 2),
        ({"norm": float("nan")}, False, 2),
        ({"weight": float("nan")}, False, None),
        ({"loss": float("inf")}, False, 2),
    ],
)
def test_only_what_rounding_explains_passes(tmp_path, change, passes, step):
    reference = trace(tmp_path / "reference")
    row = compare("tp=2,dp=1", *trace(tmp_path / "found", **change), *reference, TOLERANCES["fp32"])
    assert row.passed is passes
    assert row.first_wrong_step == step


def test_a_weight_that_is_on_one_side_only_fails(tmp_path):
    folder, found = trace(tmp_path / "found")
    found.weights["extra"] = found.weights["w"]
    row = compare("x", folder, found, *trace(tmp_path / "reference"), TOLERANCES["fp32"])
    assert not row.passed
    assert "extra" in row.worst_weight


TASK_ROWS = {
    "classification": [{"text": f"row {n} is here", "label": "odd" if n % 2 else "even"} for n in range(24)],
    "ner": [
        {"tokens": ["see", "Anna-Maria", f"row-{n}"], "tags": ["O", "B-PER", "B-LOC" if n % 3 else "O"]}
        for n in range(24)
    ],
    "qa": [
        {"context": f"It was {n} degrees.", "question": "How many?", "answer": str(n)} for n in range(10, 34)
    ],
}


@pytest.mark.world
@pytest.mark.parametrize(
    ("task", "shrunken", "model"),
    [("classification", True, "gpt2"), ("ner", False, "llama"), ("qa", False, "llama")],
)
def test_a_classifier_head_passes_like_a_language_model(session_folder, tmp_path, task, shrunken, model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in TASK_ROWS[task]))
    folder = write_model(session_folder, model, bos_token_id=0, eos_token_id=0)
    run_file = write_run(tmp_path, folder, rows, "fp32")
    head = ["model.head=classifier", f"data.task={task}"]
    head += ["train.class_weights=balanced"] if task == "classification" else []

    done = verify(run_file, *head, "--json", *(["--shrink"] if shrunken else []))

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["layout"] for row in answer["rows"]] == ["tp=1,dp=2", "tp=2,dp=1"]
    assert all(row["passed"] and row["loss_max_rel"] < 1e-5 for row in answer["rows"])
    notes = " ".join(answer["notes"])
    assert ("classifier_dropout" in notes) is (task == "ner"), "without an entry it would be a tenth"


@pytest.mark.parametrize("task", TASK_ROWS)
def test_the_parameters_of_a_classifier_are_those_of_its_own_class(session_folder, task):
    source = open_source(write_tiny_model("llama", session_folder))
    spec = HeadSpec(kind=task, labels=("a", "b", "c") if task != "qa" else ("start", "end"), pad_id=0)
    with torch.device("meta"):
        config = source.config.from_dict({**source.config_dict(), **spec.settings()})
        model = spec.auto_class.from_config(config)

    assert count_params(replace(source, head=spec)) == sum(one.numel() for one in model.parameters())
