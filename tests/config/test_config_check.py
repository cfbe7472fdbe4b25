import pytest

from megatune.config import check_run
from megatune.errors import ConfigError

VALIDATION = "data.validation=v.jsonl"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["train.global_batch_size=8", "train.tokens_per_step=1024"],
            "train.global_batch_size and train.tokens_per",
        ),
        (
            ["train.gradient_accumulation_steps=2", "train.global_batch_size=8"],
            "keep one, set the rest to null",
        ),
        (["train.tokens_per_step=5000"], "not a multiple of data.max_seq_length = 1024; use 4096 or 5120."),
        (["train.tokens_per_step=100"], "use 1024."),
        (["parallel.zero_stage=0", "parallel.offload=optimizer"], "needs parallel.zero_stage 1 or higher"),
        (
            ["parallel.zero_stage=2", "parallel.offload=all"],
            "needs parallel.zero_stage 3 or higher, but it is 2",
        ),
        (["parallel.zero_stage=2", "parallel.offload=nvme:/local"], "needs parallel.zero_stage 3"),
        (
            ["parallel.offload=nvme:/local", "train.optimizer=sgd"],
            "only adamw and adam are stepped on a disk",
        ),
        (["precision=fp32", "model.attn_implementation=flash_attention_2"], "bf16 and fp16 only"),
        (["model.compile=true", "parallel.leaf_modules=false"], "gather weights inside the blocks"),
        (
            ["data.validation=[{path: a.jsonl, weight: 1}, {path: b.jsonl, weight: 5}]"],
            "data.validation has weights, but each of its rows counts once",
        ),
        (["data.test=[{path: a.jsonl, weight: 1}]"], "data.test has weights"),
        (["train.profile.steps=12-10"], "a step or two of them, as in 10 or 10-12"),
        (["train.profile.steps=0"], "a step or two of them"),
        (["train.profile.steps=first"], "a step or two of them"),
        (["train.momentum=0.9"], "train.optimizer = sgd only, but that is adamw"),
        (["evaluate.eval_steps=10"], "evaluate.eval_steps is given, but there are no rows"),
        (["evaluate.max_eval_rows=10"], "give data.validation"),
        ([VALIDATION, "evaluate.early_stopping_patience=3"], "give evaluate.eval_steps"),
        (
            ["evaluate.temperature=0.5", "evaluate.top_k=3"],
            "evaluate.temperature, evaluate.top_k: only drawn answers have them; give evaluate.do_sample = true",
        ),
        (["evaluate.bleu_tokenizer=zh"], "is read by data.task translation, but that is text"),
        (["checkpoint.save_total_limit=3"], "give checkpoint.save_steps"),
        (
            ["checkpoint.resume=atuo"],
            "checkpoint.resume = atuo must be a folder, but it is missing; use auto or none",
        ),
        (["deepspeed=none.json"], "deepspeed = none.json must be a file, but it is missing"),
        (["launch.launcher=ssh"], "give launch.hostfile"),
        (["launch.hostfile=hosts"], "launch.hostfile is for launch.launcher = ssh, but that is auto"),
        (["launch.nodes=2", "slurm.nodes=4"], "launch.nodes = 2 and slurm.nodes = 4 differ"),
        (
            ["launch.nproc_per_node=2", "slurm.gpus_per_node=8"],
            "launch.nproc_per_node = 2 and slurm.gpus_per_node",
        ),
        (
            ["train.output_dir=run.yaml"],
            "train.output_dir = run.yaml must be a folder, but run.yaml is a file",
        ),
        (
            ["train.output_dir=in", "data.validation=[{path: a.jsonl}, {path: ./in/}]"],
            "train.output_dir = in is the folder of data.validation as well",
        ),
        (["train.output_dir=run.yaml/x/y"], "but run.yaml is a file"),
        (["train.output_dir=" + "x" * 300], "File name too long"),
    ],
)
def test_a_rule_between_sections_is_named_with_both_sides_and_the_fix(refusal, minimal, overrides, problem):
    (found,) = refusal(minimal, *overrides)
    assert problem in found


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.global_batch_size=8"],
        ["train.tokens_per_step=4096"],
        ["parallel.zero_stage=1", "parallel.offload=optimizer"],
        ["parallel.offload=nvme:/local"],
        ["train.momentum=0.9", "train.optimizer=sgd"],
        [VALIDATION, "evaluate.eval_steps=10", "evaluate.early_stopping_patience=3"],
        ["checkpoint.save_steps=10", "checkpoint.save_total_limit=3"],
        ["checkpoint.resume=."],
        ["deepspeed=run.yaml"],
        ["slurm={nodes: 4, gpus_per_node: 8}"],
        ["launch.nodes=4", "slurm.nodes=4"],
        ["launch.nproc_per_node=4", "slurm.gpus_per_node=0"],
    ],
)
def test_what_makes_sense_together_is_accepted(load, minimal, overrides):
    check_run(load(minimal, *overrides).run)


def test_all_rules_are_reported_at_once(refusal, minimal):
    broken = ["train.momentum=0.9", "parallel.zero_stage=0", "parallel.offload=all", "evaluate.eval_steps=10"]
    assert len(refusal(minimal, *broken)) == 3


def test_a_run_built_in_code_is_checked_by_the_same_rules(load):
    run = load().run
    broken = run.model_copy(update={"train": run.train.model_copy(update={"momentum": 0.9})})
    with pytest.raises(ConfigError, match=r"the run file: train\.momentum"):
        check_run(broken)
