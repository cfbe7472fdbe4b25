"""What labels mean to both sides: data that makes them and losses that read them."""

IGNORED = -100
"""Where no loss is taken (the value PyTorch and transformers use)."""
START, END = 1, 2
"""Bits of the labels of a span head: its first token, and its last."""
