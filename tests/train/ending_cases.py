"""What a rank does in tests of runs that end with an error."""

from tiny_runs import train


def train_ending(run_file: str, overrides: list[str]) -> str:
    """The error that ends the run on this rank, of whatever class."""
    try:
        code = train(run_file, overrides)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"no error, exit code {code}"
