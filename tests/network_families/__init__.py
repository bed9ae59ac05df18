"""Blocks of networks by coupling-rule family: each a small function that appends operators to a trunk."""

from network_families import images, sequences, tokens  # noqa: F401 - importing them fills the registry
from network_families.build import FAMILIES, Builder, Family, Trunk, as_image, as_tokens

__all__ = ["FAMILIES", "Builder", "Family", "Trunk", "as_image", "as_tokens"]
