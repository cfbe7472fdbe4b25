"""A DeepSpeed engine with nothing around it, for what is held against megatune."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def trained_for_a_step(model_folder: str) -> Iterator[Any]:
    """On each rank of torchrun: an engine of the Hugging Face model under ZeRO-3, which has taken one step in bf16."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}
    dist.init_process_group("gloo")
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    ids = torch.randint(0, model.config.vocab_size, (1, 16))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    yield engine
    dist.destroy_process_group()
