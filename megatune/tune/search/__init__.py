"""Hyper-parameter search. Read in this order: `space`, `study`, `tune/trial.py`, `worker`, `result`."""
