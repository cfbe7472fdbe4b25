import pytest

from megatune.config.aliases import ALIASES, BY_PLACE, VALUES
from megatune.config.load import leaves


def read(run, dotted):
    value = run
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("model.base_model=m", "model.model_name_or_path", "m"),
        ("pretrained_model_name_or_path=m", "model.model_name_or_path", "m"),
        ("train.activation_checkpointing=true", "model.gradient_checkpointing", True),
        ("disable_gradient_checkpointing=true", "model.gradient_checkpointing", False),
        ("data.sequence_len=64", "data.max_seq_length", 64),
        ("data.seq_length=64", "data.max_seq_length", 64),
        ("data.max_length=64", "data.max_seq_length", 64),
        ("cutoff_len=64", "data.max_seq_length", 64),
        ("data.sample_packing=false", "data.packing", False),
        ("train_on_inputs=true", "data.completion_only_loss", False),
        ("data.mask_prompt=false", "data.completion_only_loss", False),
        ("train.micro_batch_size=4", "train.per_device_train_batch_size", 4),
        ("train.local_batch_size=4", "train.per_device_train_batch_size", 4),
        ("train.num_epochs=2", "train.num_train_epochs", 2.0),
        ("train.lr_scheduler=linear", "train.lr_scheduler_type", "linear"),
        ("train.lr_scheduler_type=constant_with_warmup", "train.lr_scheduler_type", "constant"),
        ("train.gradient_clipping=0.5", "train.max_grad_norm", 0.5),
        ("train.warmup_ratio=0.1", "train.warmup_steps", 0.1),
        ("train.optim=adamw_torch", "train.optimizer", "adamw"),
        ("tensor_parallel_size=2", "parallel.tp_size", 2),
        ("parallel.model_parallel_size=2", "parallel.tp_size", 2),
        ("tensor_parallel.autotp_size=2", "parallel.tp_size", 2),
        ("zero_optimization.stage=1", "parallel.zero_stage", 1),
        ("zero_optimization={stage: 1}", "parallel.zero_stage", 1),
        ("fp16=true", "precision", "fp16"),
        ("train.fp16=yes", "precision", "fp16"),
        ("torch_dtype=float32", "precision", "fp32"),
        ("precision=bf16-mixed", "precision", "bf16"),
        ("train.eval_strategy=no", "evaluate.eval_steps", None),
        ("evaluate.metric_for_best_model=eval_loss", "evaluate.metric_for_best_model", "loss"),
        ("train.save_strategy='no'", "checkpoint.save_steps", None),
        ("train.overwrite_output_dir=true", "checkpoint.resume", "none"),
        ("train.overwrite_output_dir=false", "checkpoint.resume", "auto"),
        ("resume_from_checkpoint=true", "checkpoint.resume", "auto"),
        ("train.ddp_timeout=60", "launch.timeout_s", 60.0),
        ("slurm.timeout_min=90", "slurm.time", "90"),
    ],
)
def test_a_foreign_spelling_sets_our_key_and_is_told_in_one_notice(load, minimal, given, key, value):
    loaded = (
        load(minimal.replace("model_name_or_path: gpt2", "model_name_or_path: null"), given)
        if (key == "model.model_name_or_path")
        else load(minimal, given)
    )
    assert read(loaded.run, key) == value
    assert len(loaded.notices) == 1
    assert "\n" not in loaded.notices[0]
    assert loaded.notices[0].startswith("command line: ")


def test_a_notice_names_line_foreign_name_and_ours(load, minimal):
    loaded = load(minimal + "tensor_parallel_size: 2\n")
    assert loaded.notices == ["run.yaml:4: tensor_parallel_size: 2 is read as parallel.tp_size: 2"]
    assert loaded.origins["parallel.tp_size"] == "run.yaml:4"


def test_our_own_spelling_gives_no_notice(load, minimal):
    assert load(minimal, "train.warmup_steps=0.1", "parallel.tp_size=2", "data.train.path=x").notices == []


def test_both_names_are_fine_when_equal_and_refused_when_not(load, refusal, minimal):
    text = minimal.replace("output_dir: runs/x", "output_dir: runs/x, warmup_ratio: 0.1, warmup_steps: VALUE")
    assert load(text.replace("VALUE", "0.1")).run.train.warmup_steps == 0.1
    (problem,) = refusal(text.replace("VALUE", "100"))
    assert problem.startswith(
        "train.warmup_ratio: 0.1 (line 3) and train.warmup_steps: 100 (line 3) both set"
    )


def test_the_command_line_overrides_the_file_whatever_the_spelling(load, minimal):
    text = minimal + "parallel: {tp_size: 4}\n"
    assert load(text, "tensor_parallel_size=2").run.parallel.tp_size == 2


@pytest.mark.parametrize("value", ["1", "3", "-0.1", "true", "x", "[0.1]"])
def test_a_warmup_ratio_that_is_no_share_is_refused(refusal, minimal, value):
    (problem,) = refusal(minimal, f"train.warmup_ratio={value}")
    assert "a share from 0 to below 1" in problem
    assert "train.warmup_steps" in problem


def test_a_strategy_by_epochs_is_refused_with_the_key_to_set(refusal, minimal):
    (problem,) = refusal(minimal, "train.eval_strategy=epoch")
    assert "set evaluate.eval_steps instead" in problem


def test_a_strategy_by_steps_must_come_with_the_steps(load, refusal, minimal):
    text = minimal.replace("train.jsonl", "train.jsonl, validation: v") + "eval_strategy: steps\n"
    assert load(text + "evaluate: {eval_steps: 10}\n").run.evaluate.eval_steps == 10
    assert refusal(text) == ["eval_strategy: steps (line 4) must come with evaluate.eval_steps."]


def test_a_strategy_of_no_contradicts_given_steps(refusal, minimal):
    text = minimal.replace("train.jsonl", "train.jsonl, validation: v")
    (problem,) = refusal(text + "eval_strategy: no\nevaluate: {eval_steps: 10}\n")
    assert "both set evaluate.eval_steps" in problem


def test_precision_flags_must_leave_exactly_one_precision(load, refusal, minimal):
    assert load(minimal + "bf16: false\nfp16: true\n").run.precision == "fp16"
    assert load(minimal + "bf16: false\nprecision: fp32\n").run.precision == "fp32"
    assert "both set precision" in refusal(minimal + "bf16: true\nfp16: true\n")[0]
    assert refusal(minimal + "bf16: false\n") == [
        "bf16: false (line 4) must come with precision, and not bf16."
    ]
    assert refusal(minimal + "bf16: false\nprecision: bf16\n")[0].startswith(
        "bf16: false (line 4) must come with"
    )


def test_every_alias_leads_to_a_key_and_no_place_means_two_keys_or_hides_one_of_ours(load, minimal):
    keys = {".".join(key) for key, _ in leaves(load(minimal, "slurm={}").run)} | {
        "data.train",
        "data.validation",
    }
    assert {alias.key for alias in ALIASES} <= keys
    assert set(VALUES) <= keys
    assert not keys & set(BY_PLACE)
    places = [place for alias in ALIASES for place in alias.places()]
    assert len(places) == len(set(places))
