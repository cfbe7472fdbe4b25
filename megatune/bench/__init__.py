"""The benchmark suites: which runs are timed, in which order, and what their figures may be compared with."""
