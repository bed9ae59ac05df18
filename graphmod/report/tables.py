"""Tables and trees for the terminal."""

from __future__ import annotations

from collections import Counter
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from graphmod.graph import Block, cost
from graphmod.model import Model
from graphmod.modules import ModuleMap, Stability
from graphmod.report.figures import count, points, rows, share, size

if TYPE_CHECKING:
    from graphmod.methods import CompressionReport

CAPTION = (
    "latency saved: added by this change, a share of the original's; error: of the fit, 0 is perfect and 1 a constant; "
    "score: on calibration data, with all changes up to it, from the input on"
)
"""What the columns of the table of changes mean."""

METADATA = 120
"""Characters that are told of a metadata entry."""

OFTEN = 0.2
"""Share of resamples from which a boundary is told of at which a module begins in them alone."""


def summary_table(report: CompressionReport) -> Table:
    """Return the table of what was measured before and after."""
    table = Table("", "before", "after", "change", title="before and after")
    for row in rows(report):
        table.add_row(*row)
    return table


def changes_table(report: CompressionReport) -> Table:
    """Return the table of replaced runs of blocks, in the order in which they were taken."""
    table = Table(
        "blocks", "by", "latency saved", "error", "score before retraining", title="replaced", caption=CAPTION
    )
    for change in report.changes:
        first, last = change.blocks
        blocks = first if first == last else f"{first} … {last}"
        table.add_row(escape(blocks), change.kind, share(change.saving), f"{change.error:.3f}", points(-change.drop))
    return table


def info_table(model: Model, n_boundaries: int | None) -> Table:
    """Return the table of what a model is."""
    whole = cost(model)
    kinds = Counter(operator.op_type for operator in model.operators)
    most = ", ".join(f"{name} {number}" for name, number in kinds.most_common(8))
    table = Table(show_header=False)
    for name, kind in model.inputs.items():
        table.add_row("input", escape(f"{name}: {kind}"))
    for name, kind in model.outputs.items():
        table.add_row("output", escape(f"{name}: {kind}"))
    table.add_row("opset, IR version", f"{model.opset}, {model.ir_version}")
    table.add_row("operators", f"{count(len(model.operators))} ({most})")
    table.add_row("boundaries", "-" if n_boundaries is None else count(n_boundaries))
    table.add_row("parameters", count(model.n_weights))
    table.add_row("multiply-accumulates", f"{count(whole.macs)} a sample")
    table.add_row("file size", size(model.n_bytes))
    for key, value in model.metadata.items():
        table.add_row("metadata", escape(shorten(f"{key}: {value}", METADATA, placeholder=" ...")))
    return table


def blocks_tree(model: Model, root: Block, depth: int) -> Tree:
    """Return the tree of blocks to a depth, with the weights and multiply-accumulates of each."""
    tree = Tree(f"[bold]{escape(root.entry)} → {escape(root.exit)}[/]")
    pending = [(root, tree, 0)]
    while pending:
        block, branch, level = pending.pop()
        if level == depth:
            continue
        for child in block.children:
            spent = cost(model, child.operators)
            told = f"[bold]{escape(child.path)}[/]  {count(spent.weights)} weights, {count(spent.macs)} MACs"
            pending.append((child, branch.add(f"{told}  [dim]→ {escape(child.exit)}[/]"), level + 1))
    return tree


def modules_table(modules: ModuleMap, stable: Stability | None = None) -> Table:
    """Return the table of modules; with their stability, how often each begins there on resampled batches."""
    columns = ["module", "boundaries", "from", "to", "lowest similarity", *([] if stable is None else ["begins there"])]
    table = Table(*columns, title="modules", caption=None if stable is None else _told(stable))
    for number, module in enumerate(modules, 1):
        table.add_row(
            str(number),
            str(len(module)),
            escape(module.blocks[0]),
            escape(module.blocks[-1]),
            f"{module.similarity:.3f}",
            *([] if stable is None else [f"{stable.of(module.boundaries[0]):.0%}"]),
        )
    return table


def _told(stable: Stability) -> str:
    """Return what resampled batches say in a sentence, with the boundaries at which they begin other modules."""
    numbers = ", ".join(f"{number} in {part:.0%}" for number, part in stable.n_modules.items())
    first = {module.boundaries[0] for module in stable.modules}
    paths = dict(zip(stable.boundaries, (path for module in stable.modules for path in module.blocks), strict=True))
    others = [name for name in stable.boundaries if name not in first and stable.of(name) >= OFTEN]
    also = "; one also begins at " + ", ".join(f"{paths[name]} in {stable.of(name):.0%}" for name in others)
    told = f"{stable.resamples} resamples; modules: {numbers}; agreement with the table: {stable.agreement:.2f}"
    return escape(told + (also if others else ""))
