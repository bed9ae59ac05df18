"""MwT as published and module libraries, on plain, residual and depthwise networks and a transformer, three seeds.

python benchmarks/modular.py                          # all sections: hours
python benchmarks/modular.py --only train --networks vgg10-digits --seeds 0
python benchmarks/modular.py --quick                  # a first look, minutes
python benchmarks/modular.py --table                  # the tables of what was measured
"""

from __future__ import annotations

from cells import main

SECTIONS = ("train", "extract")
ARCHITECTURES = ("vgg10", "resnet44", "mobile11", "vit12")

if __name__ == "__main__":
    main("modular", SECTIONS, ARCHITECTURES, __doc__)
