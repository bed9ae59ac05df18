"""Leftovers: removed channels would hold constants downstream, which biases of what reads them take in.

Without the weights that make it, a channel is zero; a BatchNormalization turns that into its bias less its scaled mean,
an activation maps it on, and W[:, i] * c of it reaches every operator that channel i leads to. Constants follow the
graph by rules about operators: a new one is a function with ``@settles(...)`` in a file of this package.
"""

from importlib import import_module
from pkgutil import iter_modules

from graphmod.pruning.leftovers.estimate import Estimate
from graphmod.pruning.leftovers.propagation import Fold, Leftovers, Mix, settle

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Estimate", "Fold", "Leftovers", "Mix", "settle"]
