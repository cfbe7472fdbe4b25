"""The run file's precisions as torch dtypes. Apart from the engines, so that export needs no DeepSpeed."""

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
