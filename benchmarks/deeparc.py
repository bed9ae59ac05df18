"""DeepArc's claims, reproduced and beaten: one table a claim, on ResNets of 44 layers and ViTs of 12 blocks.

    python benchmarks/deeparc.py                              # every table, 10 to 65 minutes each on two cores
    python benchmarks/deeparc.py --only latency repair        # some of them
    python benchmarks/deeparc.py --quick                      # a first look, less than 3 minutes a table; not kept
    python benchmarks/deeparc.py --data cifar-10-batches-bin  # on CIFAR-10, or 100, instead of the others
    python benchmarks/deeparc.py --table                      # the tables alone, from the results that are there

A table is a file ``deeparc_<name>.py``; what it measures on one network is a cell. Cells run beside each other, each in
a process with one thread that is bound to a core. Networks are trained when they are first needed, which takes about 10
minutes a seed for all six, and kept, see ``trained_networks.py``. Results go to ``benchmarks/results/deeparc.json``,
with machine and versions.
"""

from __future__ import annotations

from cells import main

SECTIONS = ("segmentation", "removal", "latency", "sparsity", "adapt", "repair")
ARCHITECTURES = ("resnet44", "vit12")

if __name__ == "__main__":
    main("deeparc", SECTIONS, ARCHITECTURES, __doc__)
