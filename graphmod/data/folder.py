"""A folder of images, one subfolder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from graphmod.errors import InvalidDataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


def read_folder(
    folder: Path, shape: tuple[int | str | None, ...] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the images of every subfolder, resized to the model's input and scaled to 0..1.

    Parameters
    ----------
    folder : Path
        One subfolder a class; classes are numbered in the order of their sorted names.
    shape : tuple
        The input's shape, ``(batch, channels, height, width)`` with 1 or 3 channels.

    Returns
    -------
    samples : float32 array, shape (n, channels, height, width)
    targets : int64 array, shape (n,)

    Raises
    ------
    InvalidDataError
        The input is no image, or the folder has no images by class, or a file cannot be read.
    """
    sizes = [d for d in (shape or ())[1:] if isinstance(d, int)]
    if len(sizes) != 3 or sizes[0] not in (1, 3):
        raise InvalidDataError(
            f"a folder of images needs an input [batch, 1 or 3, height, width], the model's is {shape}"
        )
    channels, height, width = sizes
    files = [
        (path, label)
        for label, class_folder in enumerate(_class_folders(folder))
        for path in sorted(class_folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise InvalidDataError(f"'{folder}' has no subfolders with images; one subfolder a class is needed")
    samples = np.empty((len(files), channels, height, width), np.float32)
    for row, (path, _) in zip(samples, files, strict=True):
        try:
            with Image.open(path) as image:
                resized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            raise InvalidDataError(f"cannot read image '{path}': {error}") from error
        pixels = np.asarray(resized, np.float32) / 255
        row[...] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return samples, np.array([label for _, label in files], np.int64)


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
