"""A folder with everything that a compression gave."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from graphmod.model import external_files, open_folder, replace_file
from graphmod.report.page import page

if TYPE_CHECKING:
    from graphmod.methods import Result


FILES = {
    "model": "compressed.onnx",
    "module map": "modules.json",
    "similarity": "similarity.npz",
    "heatmap": "similarity.png",
    "figures": "report.json",
    "page": "report.html",
    "front": "front.png",
}
"""What is written, by what it holds."""


def write_report(result: Result, folder: str | PathLike[str], title: str = "model") -> dict[str, Path]:
    """Write the model, the module map, the similarity and its heatmap, the front, and the report as JSON and as a page.

    Parameters
    ----------
    result : Result
    folder : path
        Made if it does not exist; files of the same names are replaced.
    title : str
        What the page calls the model.

    Returns
    -------
    dict of str to Path
        Every file by what it holds.

    Raises
    ------
    NotWritableError
        The folder cannot be written.
    """
    path = open_folder(folder, FILES["page"])
    text = json.dumps(result.report.as_dict(), indent=2) + "\n"
    written = {
        "model": result.model.save(path / FILES["model"]),
        "module map": result.module_map.save(path / FILES["module map"]),
        "similarity": result.similarity.save(path / FILES["similarity"]),
        "heatmap": path / FILES["heatmap"],
        "figures": replace_file(path / FILES["figures"], lambda stream: stream.write(text.encode())),
        "page": replace_file(path / FILES["page"], lambda stream: stream.write(page(result, title).encode())),
    }
    result.similarity.plot(written["heatmap"], result.module_map)
    if result.front:
        written["front"] = path / FILES["front"]
        result.plot_front(written["front"])
    weights = external_files(written["model"])
    return {**written, **{f"weights {number}": file for number, file in enumerate(weights, 1)}}
