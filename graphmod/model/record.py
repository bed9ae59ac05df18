"""The record of the edits that made a model, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from graphmod.errors import InvalidModelError
from graphmod.model.model import RECORD, Model


def edits_of(model: Model) -> list[dict[str, Any]]:
    """Return the edits that a model's metadata records, the first one first."""
    text = model.metadata.get(RECORD)
    told = f"the model's metadata '{RECORD}' is no record of edits; remove that entry"
    try:
        edits: list[dict[str, Any]] = json.loads(text)["edits"] if text else []
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(told) from error
    if not isinstance(edits, list):
        raise InvalidModelError(told)
    return edits


def record(model: Model, edits: Iterable[Mapping[str, Any]]) -> None:
    """Write edits into the metadata of a model that an edit has just made, and nobody else holds."""
    text = json.dumps({"graphmod": 1, "edits": list(edits)}, separators=(",", ":"))
    props = model._proto.metadata_props
    entry = next((entry for entry in props if entry.key == RECORD), None) or props.add(key=RECORD)
    entry.value = text
