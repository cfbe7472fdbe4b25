"""Checkpoints of DeepSpeed and of Hugging Face's Trainer into megatune's, and megatune's into DeepSpeed's."""
