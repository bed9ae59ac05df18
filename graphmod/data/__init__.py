"""What a user holds becomes batches keyed by input names."""

from graphmod.data.data import Data, as_data, fixed_batch
from graphmod.data.labels import check_labels
from graphmod.data.noise import noise
from graphmod.data.splits import PARTS, Splits, as_splits, is_split, part_of

__all__ = [
    "PARTS",
    "Data",
    "Splits",
    "as_data",
    "as_splits",
    "check_labels",
    "fixed_batch",
    "is_split",
    "noise",
    "part_of",
]
