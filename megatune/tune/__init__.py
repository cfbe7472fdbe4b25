"""What finds good settings by starting runs: nothing here loads torch."""
