"""The command ``graphmod``: errors become one clear line and exit code 2.

1 means that nothing was better, so nothing was written, or, where a command looks for something, that it found some.

The commands are those that the files of this package list in ``COMMANDS``; ``PANEL`` is their heading in the help.
``GROUP`` is a command with commands of its own.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from importlib import import_module
from pkgutil import iter_modules

import typer
from rich.console import Console
from rich.markup import escape

from graphmod import cli
from graphmod.errors import GraphmodError

UsageError: type[typer.BadParameter] = typer.BadParameter.__base__  # type: ignore[assignment]  # not public itself

app = typer.Typer(
    name="graphmod",
    help="Decompose, rewrite, compress and retrain trained networks through ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for found in sorted(iter_modules(cli.__path__), key=lambda found: found.name):
    part = import_module(f"{cli.__name__}.{found.name}") if found.name != "main" else None
    for command in getattr(part, "COMMANDS", ()):
        app.command(rich_help_panel=getattr(part, "PANEL", None))(command)
    if group := getattr(part, "GROUP", None):
        app.add_typer(group)


def main() -> None:
    """Run the command line."""
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    if threading.current_thread() is threading.main_thread():  # no other may say what signals do
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            sys.exit(app(standalone_mode=False))
        except UsageError as error:
            if wrong := error.format_message().strip().rstrip("."):  # empty where the help was printed instead
                path = error.ctx.command_path if error.ctx else "graphmod"
                told.print("[red]error:[/]", escape(f"{wrong}; {path} --help tells more"))
            sys.exit(2)
        except typer.Abort:
            sys.exit(1)
        except GraphmodError as error:
            told.print("[red]error:[/]", escape(str(error)))
            sys.exit(2)
        finally:
            warned = (str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
            for message in dict.fromkeys(warned):
                told.print("[yellow]warning:[/]", escape(message))
