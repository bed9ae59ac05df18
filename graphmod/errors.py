"""The errors that graphmod raises: each message is one sentence that names the culprit and what would help."""

from __future__ import annotations


class GraphmodError(Exception):
    """Base of every error that graphmod raises on purpose."""


class InvalidModelError(GraphmodError):
    """A file, a byte string or a proto is not a model that ONNX Runtime can load."""


class InvalidDataError(GraphmodError):
    """Data does not fit the model: its names, shapes, dtypes, values, labels or number of samples."""


class RefusedError(GraphmodError):
    """A verb cannot do here what was asked; the model is untouched."""


class InvalidRecipeError(GraphmodError):
    """A recipe names verbs, parameters or files that there are not; nothing was run."""


class UnsupportedOperatorError(GraphmodError):
    """The importer has no PyTorch counterpart for one or more operators."""


class NotWritableError(GraphmodError):
    """An output path cannot be written; nothing was written or overwritten."""


class BudgetError(RefusedError):
    """A budget cannot be met: nothing more can go, or not within the steps."""
