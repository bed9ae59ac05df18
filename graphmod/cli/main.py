"""The command ``graphmod``: errors become one clear line and exit code 2."""

from __future__ import annotations

import sys
import warnings

import typer
from rich.console import Console
from rich.markup import escape

from graphmod.cli import commands
from graphmod.errors import GraphmodError

app = typer.Typer(
    name="graphmod",
    help="Decompose, rewrite, compress and retrain trained networks through ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in commands.ALL:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            app(standalone_mode=True)
        except GraphmodError as error:
            told.print("[red]error:[/]", escape(str(error)))
            sys.exit(2)
        finally:
            for warning in caught:
                if issubclass(warning.category, UserWarning):
                    told.print("[yellow]warning:[/]", escape(str(warning.message)))
