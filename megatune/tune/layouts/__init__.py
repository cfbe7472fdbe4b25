"""Measured tuning of the layout. Read in this order: `knobs`, `space`, `forecast`, `halving`, `worker`, `result`."""
