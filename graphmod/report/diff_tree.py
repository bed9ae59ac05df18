"""The tree in which the terminal shows the difference of two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from graphmod.rewrite import Difference
from graphmod.rewrite.diff import DifferentOperator, OperatorChange, Rewiring, ShapeChange, SignatureChange
from graphmod.rewrite.weight_change import WeightChange

_WIDTH = 60
"""Characters of a value."""


def diff_tree(difference: Difference, title: str, limit: int = 20) -> Tree:
    """Return the difference of two models as a tree, with at most ``limit`` entries of a kind.

    What does not count as a difference is dim.
    """
    verdict = "[red]differ[/]" if difference else "[green]are the same[/]"
    tree = Tree(f"[bold]{escape(title)}[/] {verdict}")
    for heading, lines, counts in _sections(difference):
        if not lines:
            continue
        style = "" if counts else "[dim]"
        branch = tree.add(f"{style}{heading}: {len(lines):,}")
        for line in lines[:limit]:
            branch.add(f"{style}{line()}")
        if len(lines) > limit:
            branch.add(f"[dim]… and {len(lines) - limit:,} more")
    for note in difference.notes:
        tree.add(f"[dim]{escape(note)}")
    return tree


Lines = Sequence[Callable[[], str]]


def _sections(d: Difference) -> Iterator[tuple[str, Lines, bool]]:
    """Yield headings, what renders their entries, and whether they count."""
    yield "signature", _each(d.signature, _signature), True
    yield "operators removed", _each(d.removed, lambda one: f"[red]-[/] {_operator(one)}"), True
    yield "operators added", _each(d.added, lambda one: f"[green]+[/] {_operator(one)}"), True
    yield "operators changed", _each(d.changed, _changed), True
    yield "inputs rewired", _each(d.rewired, _rewired), True
    yield "weights changed", _each(d.weights, _weight), True
    yield "opsets", _each(_items(d.opsets), _entry), True
    yield "functions", _each(_items(d.functions), lambda item: escape(f"{item[0]} {item[1]}")), True
    yield "shapes", _each(d.shapes, _shape), False
    yield "header", _each(_items(d.header), _entry), False
    yield "metadata", _each(_items(d.metadata), _entry), False


def _items(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(entries.items())


def _each(entries: Sequence[Any], render: Callable[[Any], str]) -> Lines:
    return [lambda entry=entry: render(entry) for entry in entries]  # type: ignore[misc]  # mypy has no type for it


def _operator(one: DifferentOperator) -> str:
    return f"{escape(one.op_type)} [bold]{escape(one.name)}[/]"


def _named(before: str, after: str) -> str:
    return f"[bold]{escape(before)}[/]" + (f" ({escape(after)})" if before != after else "")


def _signature(change: SignatureChange) -> str:
    told = " → ".join(filter(None, (change.before, change.after)))
    return f"{change.kind} {change.what}: {escape(told)}"


def _changed(change: OperatorChange) -> str:
    told = "; ".join(
        f"{name} {_value(before)} → {_value(after)}" for name, (before, after) in change.attributes.items()
    )
    return f"{escape(change.op_type)} {_named(change.name, change.name_after)}: {told}"


def _rewired(change: Rewiring) -> str:
    before, after = (escape(name) or "nothing" for name in (change.before, change.after))
    if change.before == change.after:
        after += f", now made by {escape(change.made_by)}" if change.made_by else ", now an input or a constant"
    slot = f"input {change.slot}" if change.slot.isdigit() else escape(change.slot)
    return f"{escape(change.op_type)} [bold]{escape(change.name)}[/] {slot}: {before} → {after}"


def _weight(change: WeightChange) -> str:
    kind = change.before if change.before == change.after else f"{change.before} → {change.after}"
    told = f"{_named(change.name, change.name_after)} {escape(kind)}"
    if change.l2 is None:
        return told
    return f"{told}: L2 {change.l2:.4g}, relative {change.relative:.3g}, largest {change.largest:.3g}"


def _shape(change: ShapeChange) -> str:
    return f"{_named(change.name, change.name_after)}: {escape(change.before)} → {escape(change.after)}"


def _entry(item: tuple[str, tuple[Any, Any]]) -> str:
    name, (before, after) = item
    return f"{escape(name)}: {_value(before)} → {_value(after)}"


def _value(value: Any) -> str:
    text = "none" if value is None else repr(value) if isinstance(value, str) else str(value)
    return escape(text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…")
