"""SeaM's claims, measured: one table a claim, on a ResNet, a VGG and a ViT.

    python benchmarks/seam.py                              # every table
    python benchmarks/seam.py --only direct                # some of them
    python benchmarks/seam.py --quick                      # a first look, less than 3 minutes a table; not kept
    python benchmarks/seam.py --data cifar-10-batches-bin  # on CIFAR-10, or 100, instead of the others
    python benchmarks/seam.py --table                      # the tables alone, from the results that are there

A table is a file ``seam_<name>.py``; how cells are run and kept is told in ``cells.py``. Networks are trained when
they are first needed, see ``trained_networks.py``. Results go to ``benchmarks/results/seam.json``, with machine and
versions.
"""

from __future__ import annotations

from cells import main

SECTIONS = ("direct", "curve", "defects")
ARCHITECTURES = ("resnet44", "vit12", "vgg10")

if __name__ == "__main__":
    main("seam", SECTIONS, ARCHITECTURES, __doc__)
