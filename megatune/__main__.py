"""`python -m megatune`: the same program as the `megatune` command."""

from megatune.cli import main

if __name__ == "__main__":
    main()
