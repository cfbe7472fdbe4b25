"""Questions for the planner's tests: real shapes on machines of the hardware table."""

from typing import Any

from parity_steps import tiny_run

from megatune.config import Run
from megatune.plan.assess import Question
from megatune.plan.hardware import accelerator_named
from megatune.plan.layout import Layout
from megatune.plan.question import Machine, make_question

GPT2_XL: dict[str, Any] = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25,
                           "vocab_size": 50257, "n_positions": 1024}  # fmt: skip
LLAMA_70B: dict[str, Any] = {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
                             "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
                             "intermediate_size": 28672, "tie_word_embeddings": False}  # fmt: skip


def run_of(**changes: Any) -> Run:
    """A run file in bf16 with AdamW and rows of 1024 tokens, 64 a step."""
    defaults: dict[str, Any] = {
        "precision": "bf16",
        "train": {"optimizer": "adamw", "momentum": 0.0, "global_batch_size": 64},
        "data": {"train": "unused.jsonl", "max_seq_length": 1024, "packing": False},
    }
    for key, value in changes.items():
        defaults[key] = {**defaults.get(key, {}), **value} if isinstance(value, dict) else value
    return tiny_run("model", **defaults)


def machine(nodes: int = 1, gpu: str = "a100-40gb", **more: Any) -> Machine:
    """So many nodes of eight GPUs."""
    return Machine(nodes=nodes, ranks_per_node=8, accelerator=accelerator_named(gpu), **more)


def question(
    config: dict[str, Any] = GPT2_XL, on: Machine | None = None, policy: Any = None, **changes: Any
) -> Question:
    """What `changes` of the run file ask about `config`."""
    return make_question(run_of(**changes), config, on or machine(), policy or {})


def layout(**changes: Any) -> Layout:
    """Eight data-parallel ranks, one sequence at a time, unless changed."""
    values: dict[str, Any] = {
        "tensor_parallel": 1, "data_parallel": 8, "micro_batch": 1, "accumulation": 8,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return Layout(**{**values, **changes})
