"""Figures as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphmod.methods import CompressionReport


def count(value: int) -> str:
    """Return a count with thousands separated.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{value:,}"


def size(value: int) -> str:
    """Return bytes in the unit that fits.

    >>> size(415800)
    '406.1 KiB'
    """
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} GiB"


def share(value: float) -> str:
    """Return a share as a percentage.

    >>> share(0.99197)
    '99.20 %'
    """
    return f"{value:.2%}".replace("%", " %")


def points(value: float) -> str:
    """Return a difference of shares in percentage points.

    >>> points(-1e-17)
    '+0.00 points'
    """
    return f"{round(value * 100, 2) + 0.0:+.2f} points"


def microseconds(value: float) -> str:
    """Return a time in the unit that fits.

    >>> microseconds(1944.7)
    '1.945 ms'
    """
    return f"{value / 1000:.4g} ms" if value >= 1000 else f"{value:.4g} µs"


def rows(report: CompressionReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield what was measured: its name, before, after, and the change."""
    before, after = report.before, report.after
    yield "parameters", count(before.weights), count(after.weights), _ratio(after.weights, before.weights)
    yield "file size", size(before.bytes), size(after.bytes), _ratio(after.bytes, before.bytes)
    yield "multiply-accumulates", count(before.macs), count(after.macs), _ratio(after.macs, before.macs)
    for batch, faster in report.speedup.items():
        name = f"latency, batch {batch}"
        yield name, microseconds(before.latency[batch]), microseconds(after.latency[batch]), f"{faster:.2f}x faster"
    for name in ("calibration", "test"):
        first, second = getattr(before, name), getattr(after, name)
        yield f"{name} score", share(first), share(second), points(second - first)


def _ratio(after: int, before: int) -> str:
    return f"{after / before:.2f}x" if before else "-"
