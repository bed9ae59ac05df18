r"""Similarity of representations: linear CKA with the unbiased HSIC, accumulated over batches.

For a batch of :math:`n` samples with Gram matrices :math:`K, L` and their zero-diagonal versions
:math:`\tilde K, \tilde L` (Nguyen, Raghu & Kornblith 2021, eq. 3; Song et al. 2012):

.. math:: \mathrm{HSIC}_1(K, L) = \frac{1}{n(n-3)} \Big( \mathrm{tr}(\tilde K \tilde L)
          + \frac{1^T\tilde K 1\, 1^T\tilde L 1}{(n-1)(n-2)} - \frac{2}{n-2} 1^T \tilde K \tilde L 1 \Big)

It equals :math:`\langle U(K), U(L) \rangle / (n(n-3))` for the U-centred matrices of Székely & Rizzo (2014), so the
values of all pairs of a batch are one matrix product of flattened, centred Gram matrices.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from threadpoolctl import threadpool_limits

from graphmod.data import Data, as_data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import blocks
from graphmod.graph import boundaries as trunk
from graphmod.model import Model, replace_file
from graphmod.probe.stream import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SAMPLES = 4
"""Samples a batch that the unbiased estimator needs."""

_FEATURES = 4096
"""Features a piece: 64 samples of them stay in a core's cache."""

_KEPT = 1 << 28
"""Bytes that the HSIC of single batches may take."""


class Run(Protocol):
    """What of a module its border is drawn by: consecutive boundaries."""

    @property
    def boundaries(self) -> Sequence[str]:
        """Names of tensors, in the network's order."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity of all pairs of boundaries.

    Parameters
    ----------
    matrix : float64 array, shape (boundaries, boundaries)
        Linear CKA; NaN in the row and column of a boundary whose activations never change.
    boundaries : tuple of str
        Names of the tensors, in the network's order.
    blocks : tuple of str
        For each boundary, the path of the block that ends there (the tensor's name where none does).
    digest : str
        The model's hash.
    n_samples, batch_size : int
        What it was measured with.
    batches : float64 array, shape (batches, boundaries, boundaries), optional
        HSIC of every batch, those of a pass after those of the one before; the sum of several in a row where all would
        take more than 256 MB. None in files of older versions.
    passes : int
        Passes over the samples.

    Examples
    --------
    >>> import graphmod as gm
    >>> sim = gm.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration)
    >>> bool(np.allclose(np.diag(sim.matrix), 1))
    True
    """

    matrix: NDArray[np.float64] = field(repr=False)
    boundaries: tuple[str, ...] = field(repr=False)
    blocks: tuple[str, ...] = field(repr=False)
    digest: str
    n_samples: int
    batch_size: int
    batches: NDArray[np.float64] | None = field(default=None, repr=False)
    passes: int = 1

    def save(self, path: str | PathLike[str]) -> Path:
        """Write an ``.npz`` with matrix, boundaries, the model's hash, and the batches that stability is told by.

        Raises
        ------
        NotWritableError
            The path cannot be written.
        """
        content: dict[str, Any] = {
            "matrix": self.matrix,
            "boundaries": np.array(self.boundaries),
            "blocks": np.array(self.blocks),
            "digest": np.array(self.digest),
            "n_samples": self.n_samples,
            "batch_size": self.batch_size,
            "passes": self.passes,
        }
        if self.batches is not None:
            content["batches"] = self.batches
        return replace_file(path, lambda stream: np.savez_compressed(stream, **content))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Similarity:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InvalidDataError
            The file is missing or is no similarity.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(
                    content["matrix"],
                    tuple(str(name) for name in content["boundaries"]),
                    tuple(str(path) for path in content["blocks"]),
                    str(content["digest"]),
                    int(content["n_samples"]),
                    int(content["batch_size"]),
                    content["batches"] if "batches" in content.files else None,
                    int(content["passes"]) if "passes" in content.files else 1,
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise InvalidDataError(f"'{path}' holds no similarity: {error}") from error

    def plot(self, path: str | PathLike[str] | None = None, modules: Iterable[Run] = ()) -> Figure:
        """Draw the matrix as a heatmap, with the borders of modules.

        Parameters
        ----------
        path : path, optional
            Where to write it: ``.png``, ``.svg`` or ``.pdf``.
        modules : ModuleMap, or some of its modules
            A square is drawn around each.

        Raises
        ------
        RefusedError
            A module has a boundary that is not compared here.
        NotWritableError
            The path cannot be written.

        Examples
        --------
        >>> import graphmod as gm
        >>> sim = gm.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration)
        >>> figure = sim.plot(modules=gm.modularize(sim, n_modules=4))
        >>> len(figure.axes[0].patches)
        4
        """
        from graphmod.probe.heatmap import heatmap

        place = {name: row for row, name in enumerate(self.boundaries)}
        runs = []
        for module in modules:
            other = next((name for name in module.boundaries if name not in place), None)
            if other is not None:
                raise RefusedError(f"a module has boundary '{other}', which is not compared here; it is of another map")
            runs.append(range(place[module.boundaries[0]], place[module.boundaries[-1]] + 1))
        return heatmap(self.matrix, self.blocks, path, runs)


def similarity(
    model: Model,
    data: object,
    boundaries: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    passes: int = 1,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Similarity:
    """Measure how similar the representations at every pair of boundaries are.

    Linear CKA over minibatches (Nguyen, Raghu & Kornblith 2021): HSIC is summed over batches in float64 before the
    quotient is taken, so the result does not depend on the batch size but for noise. Gram matrices of a batch are
    computed beside the next batch's inference.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples; targets are not used.
    boundaries : sequence of str, optional
        Tensors whose first axis is the batch; all such boundaries of the trunk if None.
    batch_size : int
        Samples a batch, at least 4.
    passes : int
        Passes over the samples, over which HSIC is summed. One pass takes them in the order of the data, of several
        each takes them shuffled anew, so that other samples meet in a batch.
    seed : int
        Of shuffling: same seed, same result.
    threads : int, optional
        Threads of ONNX Runtime; all cores if None.
    progress : bool
        Show a progress bar.

    Raises
    ------
    InvalidDataError
        A batch would have fewer than 4 samples, or the data does not fit the model.
    RefusedError
        There are no boundaries, the first axis of one is not the batch, or there is no pass; or the seed is negative.
    """
    if passes < 1:
        raise RefusedError(f"passes={passes} measures nothing; ask for 1 or more")
    if seed < 0:
        raise RefusedError("the seed must be at least 0")
    samples = as_data(model, data)
    names = tuple(trunk(model) if boundaries is None else boundaries)
    if min(batch_size, len(samples)) < MIN_SAMPLES:
        raise InvalidDataError(
            f"CKA's unbiased estimator needs batches of at least {MIN_SAMPLES} samples; "
            f"there are {len(samples)} in batches of {batch_size}"
        )
    if not names:
        raise RefusedError("there are no boundaries to compare")
    if passes > 1:
        rng = np.random.default_rng(seed)
        samples = _Passes(samples.inputs, None, [rng.permutation(len(samples)) for _ in range(passes)])
    unit = fixed_batch(model) or 1
    n_batches = -(-(len(samples) // unit) // max(1, batch_size // unit))
    sums = _Sums(n_batches, passes)
    with ThreadPoolExecutor(1) as worker, threadpool_limits(1, user_api="blas"):
        running: Future[NDArray[np.float64]] | None = None
        batches = stream(model, samples, names, batch_size, threads, reuse=2, by_sample=True)
        shown = track(batches, "similarity", total=n_batches * passes, disable=not progress, transient=True)
        for batch, values in shown:
            if len(batch) < MIN_SAMPLES:
                raise InvalidDataError(f"a batch has {len(batch)} samples; CKA needs at least {MIN_SAMPLES}")
            folded = [name for name in names if name not in values]
            if folded and boundaries is not None:
                raise RefusedError(f"the first axis of '{folded[0]}' is not the batch; pass boundaries= without it")
            names = tuple(name for name in names if name in values)
            if not names:
                raise RefusedError("there are no boundaries to compare: the batch is the first axis of none")
            if running is not None:
                sums.add(running.result())
            running = worker.submit(hsic_of_batch, [values[name] for name in names])
        if running is not None:
            sums.add(running.result())
    matrix = cka(sums.total)
    dead = [name for name, value in zip(names, np.diag(matrix), strict=True) if np.isnan(value)]
    if dead:
        warnings.warn(
            f"activations never change, or are not finite, at {', '.join(dead)}: their similarity is NaN", stacklevel=2
        )
    ends = {block.exit: block.path for block in blocks(model).walk()}
    paths = tuple(ends.get(name, name) for name in names)
    return Similarity(matrix, names, paths, model.digest, len(samples), batch_size, np.stack(sums.found), passes)


@dataclass(frozen=True, eq=False)
class _Passes(Data):
    """Samples in several orders, one after the other; those of a batch are put together when it is asked for."""

    orders: Sequence[NDArray[np.intp]] = ()

    def batches(self, size: int, unit: int = 1) -> Iterator[Data]:
        """Yield the batches of every order."""
        for order in self.orders:
            for part in Data({"rows": order}).batches(size, unit):
                yield self[np.asarray(part.inputs["rows"], np.intp)]


class _Sums:
    """HSIC of every batch, or of several in a row of one pass where all would take too much memory."""

    def __init__(self, n_batches: int, passes: int):
        self.n_batches, self.passes = n_batches, passes
        self.n_seen = 0
        self.found: list[NDArray[np.float64]] = []

    def add(self, hsic: NDArray[np.float64]) -> None:
        """Take the next batch."""
        in_a_row = max(1, -(-self.n_batches * self.passes * hsic.nbytes // _KEPT))
        if self.n_seen % self.n_batches % in_a_row:
            self.found[-1] += hsic
        else:
            self.found.append(hsic)
        self.n_seen += 1

    @property
    def total(self) -> NDArray[np.float64]:
        """The sum over all batches."""
        return np.asarray(sum(self.found))


def cka(hsic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the similarity of all pairs from their HSIC, NaN where a representation never changes.

    Examples
    --------
    >>> cka(np.array([[4.0, 3.0], [3.0, 9.0]]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    scale = np.sqrt(np.diag(hsic).clip(min=0))
    scale[scale == 0] = np.nan
    return np.asarray(hsic / np.outer(scale, scale))


def hsic_of_batch(values: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return the unbiased HSIC of all pairs of representations of one batch.

    Parameters
    ----------
    values : sequence of arrays, each of shape (n, ...)
        Activations of the same n samples, n at least 4.

    Returns
    -------
    float64 array, shape (len(values), len(values))
    """
    n = len(values[0])
    flat = np.stack([centred_gram(value).ravel() for value in values])
    product: NDArray[np.float64] = flat @ flat.T / (n * (n - 3))
    return product


def centred_gram(value: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the U-centred Gram matrix of the samples; all zeros if they do not differ.

    U-centring cancels whatever is added to all samples alike, so the first one is subtracted from all: products are of
    differences, and float32 serves where the activations are float32, however large their mean. Features are taken a
    cache's worth at a time and summed up in float64.

    Parameters
    ----------
    value : array, shape (n, ...)

    Returns
    -------
    float64 array, shape (n, n)
    """
    rows: NDArray[Any] = value.reshape(len(value), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        gram = _gram_of_differences(rows, 1.0)
        if not np.isfinite(gram).all():
            scale = float(np.abs(rows).max()) or 1.0
            gram = _gram_of_differences(rows, scale)
    return u_centre(gram)


def _gram_of_differences(rows: NDArray[Any], scale: float) -> NDArray[np.float64]:
    """Return the Gram matrix of the samples less the first; ``scale`` keeps products of huge values finite."""
    precision = np.float64 if rows.dtype == np.float64 or scale != 1.0 else np.float32
    gram = np.zeros((len(rows), len(rows)))
    memory = np.empty((len(rows), min(_FEATURES, rows.shape[1])), precision)
    for start in range(0, rows.shape[1], _FEATURES):
        part = rows[:, start : start + _FEATURES]
        less = memory[:, : part.shape[1]]
        np.subtract(part, part[0], out=less, dtype=precision)
        if scale != 1.0:
            less /= scale
        gram += less @ less.T
    return gram * scale**2


def u_centre(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the U-centred version of a Gram matrix (Székely & Rizzo 2014, def. 2)."""
    n = len(gram)
    centred = gram.copy()
    np.fill_diagonal(centred, 0)
    sums = centred.sum(axis=0)
    centred += sums.sum() / ((n - 1) * (n - 2)) - (sums[:, None] + sums[None, :]) / (n - 2)
    np.fill_diagonal(centred, 0)
    return centred
