"""The HTML page: one file that shows a compression, and needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from graphmod.report.figures import count, points, rows, share
from graphmod.report.tables import CAPTION

if TYPE_CHECKING:
    from graphmod.methods import Result

_COLOURS = ("#4c6ef5", "#12b886", "#f59f00", "#e64980", "#7950f2", "#15aabf", "#82c91e", "#fd7e14")


def page(result: Result, title: str = "graphmod") -> str:
    """Return the page: figures before and after, modules and what was replaced in them, similarity.

    Parameters
    ----------
    result : Result
    title : str
        The name of the model.
    """
    from graphmod.methods.front import as_svg  # the methods need PyTorch, and most commands do not

    template = files("graphmod.report").joinpath("page.html.jinja").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        report=result.report,
        rows=list(rows(result.report)),
        modules=list(_modules(result)),
        trained=count(result.report.trained_weights),
        trained_share=share(result.report.trained_share),
        share=share,
        points=points,
        front=as_svg(result.report) if result.front else "",
        heatmap=_heatmap(result),
        caption=CAPTION,
    )


def _modules(result: Result) -> Iterator[dict[str, Any]]:
    """Yield every module with its steps on the trunk, each kept or replaced."""
    order = {name: i for i, name in enumerate(result.similarity.boundaries)}
    replaced: dict[int, str] = {}
    for change in result.report.changes:
        for position in range(order.get(change.entry, -1) + 1, order[change.exit] + 1):
            replaced[position] = change.kind
    for number, module in enumerate(result.module_map):
        steps = [
            {"block": block, "tensor": tensor, "replaced": replaced.get(order[tensor], "")}
            for block, tensor in zip(module.blocks, module.boundaries, strict=True)
        ]
        yield {
            "number": number + 1,
            "colour": _COLOURS[number % len(_COLOURS)],
            "steps": steps,
            "similarity": module.similarity,
        }


def _heatmap(result: Result) -> str:
    import plotly.graph_objects as go

    from graphmod.probe.heatmap import BORDER

    similarity = result.similarity
    figure = go.Figure(
        go.Heatmap(
            z=np.round(similarity.matrix, 4),
            x=list(similarity.blocks),
            y=list(similarity.blocks),
            zmin=0,
            zmax=1,
            colorscale="Magma",
            hovertemplate="%{y}<br>%{x}<br>similarity %{z:.3f}<extra></extra>",
        )
    )
    order = {name: i for i, name in enumerate(similarity.boundaries)}
    for module in result.module_map:
        first, last = order[module.boundaries[0]] - 0.5, order[module.boundaries[-1]] + 0.5
        figure.add_shape(type="rect", x0=first, y0=first, x1=last, y1=last, line={"color": BORDER, "width": 2})
    figure.update_yaxes(autorange="reversed", tickfont={"size": 8})
    figure.update_xaxes(tickfont={"size": 8})
    figure.update_layout(height=720, width=780, margin={"l": 90, "r": 10, "t": 10, "b": 90})
    return str(figure.to_html(full_html=False, include_plotlyjs=True, div_id="similarity"))
