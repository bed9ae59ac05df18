"""Methods that run on the parts below: each is readable beside its source."""

from graphmod.methods.compress import compress
from graphmod.methods.result import Change, CompressionReport, Measured, Point, Result

__all__ = ["Change", "CompressionReport", "Measured", "Point", "Result", "compress"]
