"""The command line: one thin command a verb."""

from graphmod.cli.main import main

__all__ = ["main"]
