"""What `torchrun` starts in a test: Hugging Face's Trainer under ZeRO-3, three steps, saved after the second."""

import sys

import deepspeed
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

# Compiling this op, which training does not use, takes a minute.
deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}

model_folder, output_dir = sys.argv[1:]
arguments = TrainingArguments(
    output_dir=output_dir,
    max_steps=3,
    save_steps=2,
    per_device_train_batch_size=2,
    learning_rate=1e-3,
    optim="adamw_torch",
    use_cpu=True,
    ddp_backend="gloo",
    report_to=[],
    deepspeed={
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    },
)
model = AutoModelForCausalLM.from_pretrained(model_folder)
ids = torch.randint(0, model.config.vocab_size, (32, 16), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in ids]
Trainer(model=model, args=arguments, train_dataset=rows).train()
