"""The command ``groups``: which channels, heads and neurons can be removed together, and why others are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import Json, ModelFile, console
from graphmod.model import load

if TYPE_CHECKING:
    from graphmod.pruning.groups import Group, Groups, Member


def groups(
    model: ModelFile,
    with_members: Annotated[
        bool, typer.Option("--members", help="List every weight along whose axes a group lies.")
    ] = False,
    as_json: Json = False,
) -> None:
    r"""Show the channel groups of a network: what goes or stays together, and why some channels are kept.

    A unit is a channel, a head or a query group; graphmod prune removes whole units. Names of groups serve as keys of
    its ratio, such as '{conv1: 0.5}'.

    [dim]Example:[/] graphmod groups resnet.onnx --members
    """
    from graphmod.pruning.groups import groups as find_groups  # what it needs takes half a second to start
    from graphmod.rewrite.smells.evidence import counted

    found = find_groups(load(model))
    if as_json:
        typer.echo(json.dumps(_rows(found), indent=2))
        return
    if len(found):
        table = Table("group", "units", "channels a unit", "made by", "weights that hold it")
        for group in found:
            row = (group.name, str(group.n_units), _width(group), _listed(group.operators), str(len(group.weights)))
            table.add_row(*map(escape, row))
        console.print(table)
    if len(found) and with_members:
        console.print(_members(found))
    told = f"{counted(len(found), 'group')}, {counted(found.n_units, 'unit')}"
    console.print(told if len(found) else "no group of channels can be removed")
    if found.kept:
        table = Table("kept", "channels", "why")
        for reason, same in groupby(found.kept, key=lambda one: one.reason):
            own = list(same)
            makers = _listed([one.operator for one in own])
            table.add_row(escape(makers), f"{sum(one.n_channels for one in own):,}", escape(reason))
        console.print(table)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _width(group: Group) -> str:
    """Return how many channels each operator that makes a unit makes of it, as a number or a range."""
    counts = [np.bincount(member.units[member.units >= 0]) for member in group.members if member.makes]
    widths = {int(n) for count in counts for n in count if n}
    return "" if not widths else str(min(widths)) if len(widths) == 1 else f"{min(widths)} to {max(widths)}"


def _members(found: Groups) -> Table:
    """Return every axis of a weight that loses indices with units of a group, and the operator that reads it."""
    table = Table("group", "tensor", "axis", "indices", "operator", "")
    for group in found:
        for member in group.weights:
            n_own = f"{int((member.units >= 0).sum())} of {len(member.units)}"
            told = "makes units" if member.makes else ""
            row = (group.name, _tensor(found, member), str(member.axis), n_own, member.operator, told)
            table.add_row(*map(escape, row))
    return table


def _tensor(found: Groups, member: Member) -> str:
    """Return the tensor that a member is an axis of, as the file calls it: of a copy for one reader what all read."""
    return found.analysis.originals.get(member.tensor, member.tensor)


def _rows(found: Groups) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": group.name,
                "units": group.n_units,
                "made_by": list(group.operators),
                "members": [
                    {
                        "tensor": _tensor(found, member),
                        "axis": member.axis,
                        "operator": member.operator,
                        "constant": member.is_constant,
                        "makes": member.makes,
                        "indices": np.flatnonzero(member.units >= 0).tolist(),
                    }
                    for member in group.members
                ],
            }
            for group in found
        ],
        "kept": [
            {"operator": one.operator, "channels": one.n_channels, "of": one.of, "reason": one.reason}
            for one in found.kept
        ],
    }


COMMANDS = (groups,)
