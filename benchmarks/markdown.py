"""Tables as Markdown, and the figures in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first has the names of the columns, as a table."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def spread(values: Iterable[float | None], form: str = ".1f", unit: str = "") -> str:
    """Return mean and deviation of what is known, such as ``1.5 ± 0.2 %``; a dash where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    told = f"{fmean(known):{form}}"
    return (told if len(known) == 1 else f"{told} ± {stdev(known):{form.lstrip('+')}}") + unit
