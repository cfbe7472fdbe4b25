"""`megatune doctor`: is every machine of a job fit to train, and which one is not."""
