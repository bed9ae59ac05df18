"""``python -m graphmod``: the command line."""

from graphmod.cli import main

main()
