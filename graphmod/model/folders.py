"""Folders that results of several files go to."""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from pathlib import Path

from graphmod.errors import NotWritableError
from graphmod.model.files import check_writable


def check_folder(folder: str | PathLike[str], file: str) -> None:
    """Raise NotWritableError unless a folder can be made, or written where there is one; nothing is left there."""
    path = Path(folder)
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        open_folder(path, file)
    finally:
        for one in missing:
            with suppress(OSError):  # it was not made, or somebody else has written in it by now
                one.rmdir()


def open_folder(folder: str | PathLike[str], file: str) -> Path:
    """Make a folder to write to, a file of this name among others, if it does not exist.

    Raises
    ------
    NotWritableError
        It cannot be made, or nothing can be written in it.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritableError(f"cannot write to folder '{path}': {error.strerror}") from error
    check_writable(path / file)
    return path
