"""Measures of a model: held-out loss on all ranks, text from an exported folder."""
