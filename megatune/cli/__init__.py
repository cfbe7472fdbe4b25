"""The command line: one module a command, nothing heavy imported before a command needs it."""

from megatune.cli.app import main

__all__ = ["main"]
