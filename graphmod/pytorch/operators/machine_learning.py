"""Features and labels of ai.onnx.ml: scaling, encoding, imputing, looking up. Strings are NumPy arrays of objects.

Where the standard leaves a choice, what ONNX Runtime computes is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from graphmod.pytorch.dtypes import to_tensor
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator
from graphmod.pytorch.stand_ins import like_input, stand_in

DOMAIN = "ai.onnx.ml"

Array = NDArray[Any]
Key = int | float | str

INT, STRING = np.dtype(np.int64), np.dtype(object)
T = TypeVar("T", Tensor, Array)


def as_float(op: Operator, index: int = 0) -> fx.Node:
    """Return an input in single precision, which all numbers are computed in."""
    return op.input(index) if op.dtype(index) == np.float32 else op.method("float", op.input(index))


def class_labels(op: Operator, of_ints: str, of_strings: str) -> list[int] | list[str]:
    """Return the labels that one of two attributes holds; none at all where neither does."""
    ints: list[int] = op.attribute(of_ints, [])
    names: list[str] = op.attribute(of_strings, [])
    return names or ints


def labels_at(positions: Tensor, labels: Sequence[int] | Sequence[str]) -> Tensor | Array:
    """Return the labels at positions: a tensor, or an array where they are strings."""
    if isinstance(labels[0], str):
        chosen: Array = np.array(labels, object)[positions.cpu().numpy()]
        return chosen
    return torch.tensor(labels, dtype=torch.int64, device=positions.device)[positions]


@stand_in("Scaler", "Normalizer", domain=DOMAIN)
def _as_float(proto: NodeProto) -> list[NodeProto]:
    return [helper.make_node("Cast", [proto.input[0]], [proto.output[0]], to=TensorProto.FLOAT)]


stand_in("Imputer", domain=DOMAIN)(like_input(0))


def rows_of(proto: NodeProto, n: int, output: int = 0) -> list[NodeProto]:
    """Return operators whose output has ``n`` floats for every row of the first input: a model's stand-in."""
    name = proto.output[output]
    value = helper.make_tensor("value", TensorProto.FLOAT, [1, n], [0.0] * n)
    return [
        helper.make_node("Constant", [], [f"{name}/weight"], value=value),
        helper.make_node("ArgMax", [proto.input[0]], [f"{name}/row"], axis=1),
        helper.make_node("Cast", [f"{name}/row"], [f"{name}/float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [f"{name}/float", f"{name}/weight"], [name]),
    ]


def stated(proto: NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute of an operator."""
    return next((helper.get_attribute_value(entry) for entry in proto.attribute if entry.name == name), default)


@stand_in("FeatureVectorizer", domain=DOMAIN)
def _features(proto: NodeProto) -> list[NodeProto]:
    return rows_of(proto, sum(stated(proto, "inputdimensions", [])))


class Scale(nn.Module):
    """Subtracts an offset and multiplies by a scale, for every feature or for all; the importer brings both."""

    offset: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return single precision, whatever the type of ``x``."""
        return ((x - self.offset) * self.scale).float()


@operator("Scaler", domain=DOMAIN)
def scaler(op: Operator) -> fx.Node:
    """Convert Scaler."""
    offset, scale = op.attribute_weight("offset"), op.attribute_weight("scale")
    if offset is None or scale is None:
        raise op.unsupported("it needs an offset and a scale")
    return op.module(Scale(), op.input(), offset=offset, scale=scale)


@operator("Normalizer", domain=DOMAIN)
def normalizer(op: Operator) -> fx.Node:
    """Convert Normalizer."""
    return op.call(normalize, as_float(op), op.attribute("norm", "MAX"))


def normalize(x: Tensor, norm: str) -> Tensor:
    """Divide rows by their maximum, the sum of absolute values, or the root of the sum of squares, if not zero."""
    if norm == "MAX":
        size = x.amax(-1, keepdim=True)
    else:
        size = torch.linalg.vector_norm(x, 1 if norm == "L1" else 2, -1, keepdim=True)
    return x / torch.where(size == 0, 1.0, size)


@operator("Binarizer", domain=DOMAIN)
def binarizer(op: Operator) -> fx.Node:
    """Convert Binarizer."""
    return op.call(binarize, op.input(), op.attribute("threshold", 0.0))


def binarize(x: Tensor, threshold: float) -> Tensor:
    """Return 1 above the threshold, else 0."""
    return (x > threshold).to(x.dtype)


@operator("Imputer", domain=DOMAIN)
def imputer(op: Operator) -> fx.Node:
    """Convert Imputer."""
    values: list[float] = op.attribute("imputed_value_floats", [])
    whole: list[int] = op.attribute("imputed_value_int64s", [])
    missing, whole_missing = op.attribute("replaced_value_float", 0.0), op.attribute("replaced_value_int64", 0)
    if op.is_float() if values and whole else values:
        return op.call(impute, op.input(), values, missing)
    return op.call(impute, op.input(), whole, whole_missing)


def impute(x: Tensor, values: Sequence[float], missing: float) -> Tensor:
    """Put values, one a feature or one for all, in place of what is missing."""
    gaps = x.isnan() if math.isnan(missing) else x == missing
    return torch.where(gaps, torch.tensor(values, dtype=x.dtype, device=x.device), x)


@operator("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(op: Operator) -> fx.Node:
    """Convert ArrayFeatureExtractor, of strings too."""
    return op.call(features_at, op.input(0), op.input(1))


def features_at(x: T, positions: Tensor) -> T:
    """Return features by their positions along the last axis; a vector counts as one row."""
    flat = positions.reshape(-1)
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    return rows[..., flat] if isinstance(rows, Tensor) else rows[..., flat.cpu().numpy()]


@operator("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(op: Operator) -> fx.Node:
    """Convert FeatureVectorizer."""
    sizes: list[int] = op.attribute("inputdimensions", [])
    if len(sizes) != len(op.proto.input):
        raise op.unsupported("it needs a number of features for every input")
    return op.call(joined_features, op.inputs(), sizes)


def joined_features(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Cut every part, or fill it with zeros, to its number of features, and put them side by side."""
    rows = (part.reshape(-1, part.shape[-1]).float() for part in parts)
    return torch.cat([F.pad(part, [0, size - part.shape[1]]) for part, size in zip(rows, sizes, strict=True)], 1)


class Lookup(nn.Module):
    """Looks numbers up among numbers: those that are no key become a default."""

    keys: Tensor
    values: Tensor
    default: Tensor
    of_nan: Tensor

    def __init__(self, mapping: Mapping[Any, Any], default: Any, dtype: np.dtype[Any], to: np.dtype[Any]) -> None:
        super().__init__()
        keys = sorted(key for key in mapping if key == key) or [0]  # a search needs something to find
        of_nan = next((value for key, value in mapping.items() if key != key), default)
        self.register_buffer("keys", to_tensor(np.array(keys, dtype)))
        self.register_buffer("values", to_tensor(np.array([mapping.get(key, default) for key in keys], to)))
        self.register_buffer("default", to_tensor(np.array(default, to)))
        self.register_buffer("of_nan", to_tensor(np.array(of_nan, to)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the values of the keys in ``x``."""
        position = torch.searchsorted(self.keys, x.contiguous()).clamp(max=len(self.keys) - 1)
        found = torch.where(self.keys[position] == x, self.values[position], self.default)
        return torch.where(x.isnan(), self.of_nan, found)


class StringLookup(nn.Module):
    """Looks strings up, or numbers among strings: those that are no key become a default."""

    values: Tensor | Array

    def __init__(self, mapping: Mapping[Any, Key], default: Key, to: np.dtype[Any]) -> None:
        super().__init__()
        self.positions = {key if key == key else None: position for position, key in enumerate(mapping)}
        values = np.array([*mapping.values(), default], to)
        if values.dtype == object:
            self.values = values
        else:
            self.register_buffer("values", to_tensor(values))

    def forward(self, x: Tensor | Array) -> Tensor | Array:
        """Return the values of the keys in ``x``."""
        keys = (item if item == item else None for item in x.reshape(-1).tolist())
        found = np.array([self.positions.get(key, -1) for key in keys], np.int64).reshape(tuple(x.shape))
        if isinstance(self.values, Tensor):
            return self.values[torch.from_numpy(found).to(self.values.device)]
        chosen: Array = self.values[found]
        return chosen


@operator("LabelEncoder", domain=DOMAIN)
def string_encoder(op: Operator) -> fx.Node:
    """Convert LabelEncoder of opset 1: strings to their positions, or positions to strings."""
    names: list[str] = op.attribute("classes_strings", [])
    return _between(op, names, list(range(len(names))))


@operator("CategoryMapper", domain=DOMAIN)
def category_mapper(op: Operator) -> fx.Node:
    """Convert CategoryMapper: strings to integers, or integers to strings."""
    return _between(op, op.attribute("cats_strings", []), op.attribute("cats_int64s", []))


def _between(op: Operator, names: list[str], ints: list[int]) -> fx.Node:
    of_string, of_int = op.attribute("default_int64", -1), op.attribute("default_string", "_Unused")
    if op.dtype().kind == "O":
        return op.module(StringLookup(dict(zip(names, ints, strict=True)), of_string, INT), op.input())
    return op.module(StringLookup(dict(zip(ints, names, strict=True)), of_int, STRING), op.input())


DEFAULTS: dict[str, Key] = {"strings": "_Unused", "int64s": -1, "floats": -0.0}


@operator("LabelEncoder", since=2, domain=DOMAIN)
def label_encoder(op: Operator) -> fx.Node:
    """Convert LabelEncoder; not-a-number is a key like any other since opset 4."""
    keys, values = _listed(op, "keys"), _listed(op, "values")
    if len(keys) != len(values) or not len(keys):
        raise op.unsupported("it needs as many values as keys")
    default = _default(op, values.dtype.kind)
    mapping = dict(zip(keys.tolist(), values.tolist(), strict=True))
    if op.opset < 4:
        mapping = {key: value for key, value in mapping.items() if key == key}
    if "O" in (keys.dtype.kind, values.dtype.kind):
        return op.module(StringLookup(mapping, default, values.dtype), op.input())
    return op.module(Lookup(mapping, default, keys.dtype, values.dtype), op.input())


def _listed(op: Operator, what: str) -> Array:
    """Return the keys or the values, whichever attribute they are in."""
    tensor: TensorProto | None = op.attribute(f"{what}_tensor", None)
    names: list[str] = op.attribute(f"{what}_strings", [])
    ints: list[int] = op.attribute(f"{what}_int64s", [])
    floats: list[float] = op.attribute(f"{what}_floats", [])
    if tensor is not None:
        array = numpy_helper.to_array(tensor)
        return array.astype(object) if array.dtype.kind in "US" else array
    if names:
        return np.array(names, object)
    return np.array(ints, np.int64) if ints else np.array(floats, np.float32)


def _default(op: Operator, kind: str) -> Key:
    tensor: TensorProto | None = op.attribute("default_tensor", None)
    name = {"O": "string", "i": "int64", "f": "float"}[kind]
    given: Key = op.attribute(f"default_{name}", DEFAULTS[f"{name}s"])
    op.ignore("default_string", "default_int64", "default_float")
    if tensor is None:
        return given
    item: Any = numpy_helper.to_array(tensor).reshape(-1)[0]
    return str(item) if kind == "O" else item.item()


@operator("OneHotEncoder", domain=DOMAIN)
def one_hot_encoder(op: Operator) -> fx.Node:
    """Convert OneHotEncoder."""
    categories = class_labels(op, "cats_int64s", "cats_strings")
    positions = {category: position for position, category in enumerate(categories)}
    lenient = bool(op.attribute("zeros", 1))
    if op.dtype().kind == "O":
        found = op.module(StringLookup(positions, -1, INT), op.input())
    else:
        whole = op.method("long", op.input())
        found = op.module(Lookup(positions, -1, INT, INT), whole)
    return op.call(indicators, found, len(categories), lenient)


def indicators(positions: Tensor, n: int, lenient: bool) -> Tensor:
    """Return 1 at a category's position, else 0; a position of -1 has none, which is an error unless ``lenient``."""
    if not lenient and bool((positions < 0).any()):
        raise ValueError("OneHotEncoder: an element is none of the categories")
    return (positions[..., None] == torch.arange(n, device=positions.device)).float()


@operator("ZipMap", domain=DOMAIN)
def zip_map(op: Operator) -> fx.Node:
    """Convert ZipMap."""
    return op.call(rows_by_label, op.input(), class_labels(op, "classlabels_int64s", "classlabels_strings"))


def rows_by_label(x: Tensor, labels: Sequence[Key]) -> list[dict[Key, Tensor]]:
    """Return every row as a dictionary of its scores by label."""
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    return [dict(zip(labels, row.unbind(), strict=True)) for row in rows]
