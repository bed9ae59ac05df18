"""Latencies of signatures on this machine, measured when asked for and kept on disk."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import inf
from pathlib import Path
from time import perf_counter

import onnxruntime as ort
from rich.progress import Progress

from graphmod.errors import InvalidDataError, NotWritableError
from graphmod.model import replace_file
from graphmod.probe.operator_latency.measuring import launch, timed
from graphmod.probe.operator_latency.signature import Signature

LEAST = 0.01
"""Microseconds that any operator takes, where measuring tells no difference from nothing."""

PASSES = 2
"""All are measured so many times, one after the other: what slows the machine down for a second meets few twice."""


class LatencyTable:
    """Latencies of signatures in ONNX Runtime on this machine: measured when asked for, and kept on disk.

    There is one file a processor, version of ONNX Runtime and number of threads. Processes may share a folder: a save
    takes in what others saved in the meantime, and of two latencies of one signature the lesser. (Of two saves at the
    same instant one may be lost, and is measured again.) Ask for many at once: each call that measures saves.

    Parameters
    ----------
    path : path, optional
        Folder of the files; ``$GRAPHMOD_CACHE/latency`` if None, else ``$XDG_CACHE_HOME/graphmod/latency``, else
        ``~/.cache/graphmod/latency``.
    threads : int
        Threads within an operator. Of one, CPU time is measured; of several, time on the clock.

    Raises
    ------
    InvalidDataError
        The file is damaged.

    Examples
    --------
    >>> import graphmod as gm, tempfile
    >>> m = gm.load(gm.demo.model_path())
    >>> table = gm.probe.LatencyTable(tempfile.mkdtemp())
    >>> whole = gm.probe.clusters(m)
    >>> first = whole.signature(whole.clusters[0])
    >>> table.many([first]) == table.many([first])
    True
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, threads: int = 1) -> None:
        self.threads = threads
        folder = _cache_folder() if path is None else Path(path)
        self.file = folder / f"{_slug(processor())}_onnxruntime-{ort.__version__}_threads-{threads}.jsonl"
        self._known = _read(self.file)

    def __len__(self) -> int:
        """Return the number of signatures measured."""
        return len(self._known)

    def many(self, signatures: Iterable[Signature], *, progress: bool = False) -> list[float]:
        """Return the latencies of signatures; those never measured are, and the file is saved once.

        Parameters
        ----------
        signatures : iterable of Signature
        progress : bool
            Show a progress bar where measuring takes over a second.

        Raises
        ------
        InvalidModelError, InvalidDataError
            ONNX Runtime cannot load operators, or they fail; what was measured before is saved.
        NotWritableError
            The file cannot be written.
        """
        asked = list(signatures)
        wanted = {one.key: one for one in asked if one.key not in self._known}
        if wanted:
            runs, idle = dict.fromkeys(wanted, inf), inf
            try:
                for key, run, beside in self._timed(wanted, progress):
                    runs[key], idle = min(run, runs[key]), min(beside, idle)
            finally:
                for key, run in ((key, run) for key, run in runs.items() if run < inf):
                    self._known[key] = max(LEAST, run - idle + launch(self.threads))
                self._save()
        return [self._known[one.key] for one in asked]

    def _timed(self, wanted: Mapping[str, Signature], progress: bool) -> Iterator[tuple[str, float, float]]:
        """Yield what runs take and what is taken off, a pass after the other."""
        start = perf_counter()
        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("operator latency", total=PASSES * len(wanted), visible=False)
            for key, one in [*wanted.items()] * PASSES:
                yield key, *timed(one, self.threads)
                bar.update(task, advance=1, visible=perf_counter() - start > 1)

    def _save(self) -> None:
        saved = _read(self.file)
        self._known = saved | {key: min(time, saved.get(key, inf)) for key, time in self._known.items()}
        lines = [f'{{"microseconds":{time!r},"signature":{key}}}\n' for key, time in self._known.items()]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritableError(f"cannot make the folder '{self.file.parent}': {error.strerror}") from error
        replace_file(self.file, lambda stream: stream.write("".join(lines).encode()))


def _cache_folder() -> Path:
    if os.environ.get("GRAPHMOD_CACHE"):
        return Path(os.environ["GRAPHMOD_CACHE"]) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphmod" / "latency"


def _read(file: Path) -> dict[str, float]:
    """Return what a file holds by signature key; nothing where there is no file."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidDataError(f"cannot read the latencies in '{file}': {error.strerror}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found[json.dumps(entry["signature"], separators=(",", ":"))] = max(LEAST, float(entry["microseconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(
                f"line {number} of '{file}' is no latency; delete the file, and all are measured again"
            ) from error
    return found


@cache
def processor() -> str:
    """Return the name of the processor, with the numbers that tell models of one name apart."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.processor()} {platform.machine()}"
    fields = dict(re.findall(r"^([^:\t]+?)\s*:\s*(.*)$", cpuinfo.read_text().split("\n\n")[0], re.MULTILINE))
    told = (fields.get(name, "") for name in ("model name", "cpu family", "model", "stepping", "CPU part"))
    return " ".join(filter(None, (*told, platform.machine())))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
