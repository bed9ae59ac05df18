"""Where a command may write: in a file whose name says what is in it, and that is none of those it reads."""

from __future__ import annotations

from pathlib import Path

from graphmod.errors import NotWritableError
from graphmod.model import check_writable


def check_destination(out: Path, suffixes: tuple[str, ...], *inputs: Path | None) -> None:
    """Raise NotWritableError, before anything is computed, unless a command may write to ``out``.

    Parameters
    ----------
    out : Path
    suffixes : tuple of str
        What its name may end in.
    *inputs : Path or None
        What the command reads.
    """
    check_apart(out, *inputs)
    if out.suffix not in suffixes:
        *first, last = suffixes
        raise NotWritableError(
            f"cannot write '{out}': its name must end in {', '.join(first)}{' or ' * bool(first)}{last}"
        )
    check_writable(out)


def check_apart(out: Path, *inputs: Path | None) -> None:
    """Raise NotWritableError if what is to be written is one of the files that a command reads."""
    for path in inputs:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise NotWritableError(f"cannot write '{out}': the command reads it; give --out another name")
