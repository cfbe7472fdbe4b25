"""Metrics of the tasks, computed by the reference libraries, which are imported when a score is asked for."""
