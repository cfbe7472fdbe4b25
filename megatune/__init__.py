"""megatune: full-parameter fine-tuning with DeepSpeed ZeRO-3 x tensor parallelism x mixed precision."""

__version__ = "0.1.0"
