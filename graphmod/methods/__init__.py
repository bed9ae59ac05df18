"""Methods that run on the parts below: each is readable beside its source."""

from graphmod.methods.compress import compress
from graphmod.methods.result import Change, CompressionReport, Measured, Result

__all__ = ["Change", "CompressionReport", "Measured", "Result", "compress"]
