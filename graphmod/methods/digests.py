"""Digests of data, by which a manifest names what a model was made of."""

from __future__ import annotations

import hashlib

import numpy as np

from graphmod.data import Splits


def digest(parts: Splits) -> str:
    """Return a digest of the samples and labels that were trained on and chosen by.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(digest(gm.demo.splits()))
    64
    """
    sha = hashlib.sha256()
    for part in (parts.train, parts.calibration):
        for array in (*part.inputs.values(), np.asarray(part.targets)):
            sha.update(np.ascontiguousarray(array).view(np.uint8).data)
    return sha.hexdigest()
