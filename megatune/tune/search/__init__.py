"""Hyper-parameter search. Read in this order: `space`, `study`, `trial`, `worker`, `result`."""
