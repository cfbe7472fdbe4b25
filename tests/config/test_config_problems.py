import pytest

ALL_WRONG = """\
model:
  model_name_or_path: gpt2
  initialize: zeros
data:
  train: {path: a.jsonl, colums: {a: b}}
  max_seq_length: 1
train:
  learning_rte: 1e-5
  learning_rate: "1e-5"
  max_steps: 1000.0
  seed: true
  warmup_steps: 1.5
  tp_size: 2
parallel: {offload: cpu}
launch: 4
slurm: {account: 17, nodes: 0}
report_to: tensorbord
learning_rate: 3
cutoff_le: 3
"""


def test_every_problem_is_reported_at_once_with_line_found_allowed_and_fix(refusal):
    problems = refusal(ALL_WRONG)
    expected = [
        "model.initialize is zeros (line 3); it must be one of pretrained, random.",
        "data.train has no key 'colums' (line 5). Did you mean data.train.columns? "
        "Keys of data.train: columns, max_samples, mixture, path, paths, split.",
        "data.max_seq_length is 1 (line 6); it must be a whole number from 2 to 16777216.",
        "train.output_dir is missing. Run folder: checkpoints, metrics, logs, export. "
        "For example: runs/first",
        "train.max_steps is 1000.0 (line 10); it must be a whole number from 1 to 2147483647. Write 1000.",
        'train.learning_rate is "1e-5" (line 9); it must be a number of at least 0. Remove the quotes.',
        "train.seed is true (line 11); it must be a whole number from 0 to below 4294967296.",
        "train.warmup_steps is 1.5 (line 12); it must be a whole number of steps, or below 1 for a share "
        "of all steps.",
        "train has no key 'tp_size' (line 13). Did you mean parallel.tp_size?",
        "parallel.offload is cpu (line 14); it must be none, optimizer, all, or nvme:/absolute/path.",
        "launch is 4 (line 15); it must be a section with the keys forward_env, hostfile, launcher, "
        "max_restarts, nodes, nproc_per_node, timeout_s.",
        "slurm.account is 17 (line 16); it must be text. Put it in quotes.",
        "slurm.nodes is 0 (line 16); it must be a whole number from 1 to 2147483647.",
        "report_to[0] is tensorbord (line 17); it must be tensorboard. Did you mean tensorboard?",
        "there is no top-level key 'cutoff_le' (line 19). Did you mean data.max_seq_length?",
    ]
    assert [problem for problem in expected if problem not in problems] == []
    starts = (
        "train has no key 'learning_rte' (line 8). Did you mean train.learning_rate? Keys of train: adam_",
        "there is no top-level key 'learning_rate' (line 18). Did you mean train.learning_rate? Top-level",
    )
    assert all(any(problem.startswith(start) for problem in problems) for start in starts)
    assert len(problems) == len(expected) + len(starts)


def test_no_problem_speaks_of_the_validation_library(refusal):
    text = "\n".join(refusal(ALL_WRONG)).lower()
    assert not any(
        word in text for word in ("pydantic", "https:", "input should", "value error", "extra inputs")
    )


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("train.per_device_batch_size=2", "Did you mean train.per_device_train_batch_size?"),
        ("train.warmup=2", "Did you mean train.warmup_steps?"),
        ("model.sequence_len=2", "It is called data.max_seq_length here."),
        ("evaluate.save_steps=2", "Did you mean checkpoint.save_steps?"),
        ("modle.model_name_or_path=x", "Did you mean model?"),
        ("precison=fp16", "Did you mean precision?"),
        ("scheduler={type: WarmupLR}", "go into a JSON file that the key deepspeed names"),
        ("train.zzz=1", "Keys of train: adam_beta1"),
    ],
)
def test_an_unknown_key_is_answered_with_where_it_belongs(refusal, minimal, setting, hint):
    (problem,) = refusal(minimal, setting)
    assert hint in problem
    assert "(command line)" in problem


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("launch.nproc_per_node=all", "a whole number from 1 to 2147483647, or auto"),
        ("model.gradient_checkpointing=maybe", "true or false, or auto"),
        (
            "train.lr_scheduler_type=cosin",
            "one of constant, linear, cosine, range_test. Did you mean cosine?",
        ),
        ("train.adam_beta1=1", "a number from 0 to below 1"),
        ("train.adam_epsilon=0", "a number above 0"),
        ("train.learning_rate=.inf", "a number of at least 0"),
        ("train.learning_rate=.nan", "a number of at least 0"),
        ("train.learning_rate=1e999", "a number of at least 0"),
        ("train.seed=-1", "a whole number from 0 to below 4294967296"),
        ("parallel.zero_stage=4", "one of 0, 1, 2, 3"),
        ("parallel.zero_stage=true", "one of 0, 1, 2, 3"),
        ("parallel.offload=nvme:relative", "none, optimizer, all, or nvme:/absolute/path"),
        ("data.packing='true'", "true or false. Remove the quotes."),
        ("train.seed=010", "Write 10: a number does not begin with 0."),
        ("data.train=[]", "given by path, paths or mixture"),
        ("data.train=[a, 5]", "it must be text. Put it in quotes."),
        ("data.train={path: a, paths: b}", "given by path or by paths, not by both"),
        ("data.train={path: a, columns: {text: 5}}", "it must be text. Put it in quotes."),
        ("data.train=~/rows.jsonl", "a path written in full, without ~"),
        ("train.output_dir=~/runs", "a path written in full, without ~"),
        ("train.output_dir=5", "a path"),
        ("model.model_name_or_path=''", "text that is not empty"),
        ("slurm.mem=lots", "a number with K, M, G or T"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(refusal, minimal, setting, allowed):
    (problem,) = refusal(minimal, setting)
    assert setting.partition("=")[0] in problem
    assert allowed in problem


def test_a_giant_value_does_not_flood_the_message(refusal, minimal):
    (problem,) = refusal(minimal, f"train.seed={'x' * 100_000}")
    assert len(problem) < 250


def test_a_whole_file_without_sections_names_every_required_key(refusal):
    problems = refusal("precision: bf16\n")
    assert [problem.partition(" is missing.")[0] for problem in problems] == [
        "model.model_name_or_path",
        "data.train",
        "train.output_dir",
    ]
