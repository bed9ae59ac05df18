"""The command ``groups``: which channels, heads and neurons can be removed together, and why others are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import Json, ModelFile, console
from graphmod.model import load


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

    found = find_groups(load(model))
    if as_json:
        typer.echo(json.dumps(_rows(found), indent=2))
        return
    if len(found):
        table = Table("group", "units", "indices of a unit", "made by", "weights that hold it")
        for group in found:
            made = sum(int((member.units >= 0).sum()) for member in group.members if member.makes)
            each = made / max(1, group.n_units * sum(member.makes for member in group.members))
            row = (group.name, str(group.n_units), f"{each:g}", _listed(group.operators), str(len(group.weights)))
            table.add_row(*map(escape, row))
            for member in group.weights if with_members else ():
                n_own = int((member.units >= 0).sum())
                table.add_row(
                    "", "", "", escape(member.operator), escape(f"{member.tensor}, axis {member.axis}: {n_own}")
                )
        console.print(table)
    told = "no group of channels can be removed" if not len(found) else f"{len(found)} groups, {found.n_units:,} units"
    console.print(told)
    if found.kept:
        table = Table("kept", "channels", "why")
        for reason, same in groupby(found.kept, key=lambda one: one.reason):
            own = list(same)
            makers = _listed([one.operator for one in own])
            table.add_row(escape(makers), f"{sum(one.n_channels for one in own):,}", escape(reason))
        console.print(table)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _rows(found: Any) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": group.name,
                "units": group.n_units,
                "made_by": list(group.operators),
                "members": [
                    {
                        "tensor": member.tensor,
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
