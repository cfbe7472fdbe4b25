"""Checkpoints: written aside and committed, verified, read back on any layout, pruned, exported.

`layout`, `manifest`, `verify` and `folders` load no torch: commands that only look at files are quick.
"""
