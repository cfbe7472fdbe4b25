"""The engines that run a training step. Only this package imports DeepSpeed."""
