"""Slurm: the job's text, handing it in, asking about it, and what a failed job has left behind."""
