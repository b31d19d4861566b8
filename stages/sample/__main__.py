"""Stage `sample`: params -> data/sample/architectures.json.  Run: python -m stages.sample"""

from __future__ import annotations

import argparse
from collections import Counter

from stages.params import Params
from stages.sample import designs
from stages.sample.source import read_shape
from stages.stage import DATA, main


def run(params: Params, _: argparse.Namespace) -> None:
    shape = read_shape(params.model)
    designs.check_budget(shape, params.sample, params.budget)
    made = designs.all_designs(shape, params.sample, params.budget)
    designs.write(DATA / "sample" / "architectures.json", shape, made)
    counts = ", ".join(f"{count} {design}" for design, count in Counter(d.design for d in made).items())
    print(f"{len(made)} architectures of {params.model.source} ({shape.layers} layers): {counts}")


if __name__ == "__main__":
    main("sample", run)
