"""Stage `sample`: params -> data/sample/architectures.json."""

from __future__ import annotations

import argparse
from collections import Counter

from stages.config.params import Params
from stages.sample import designs, feasibility
from stages.sample.feasibility import Request
from stages.sample.source import locate, read_model
from stages.sample.tokenizer_files import check_files
from stages.sample.weight_check import check_source
from stages.stage import DATA


def run(params: Params, _: argparse.Namespace) -> None:
    model = read_model(params.model)
    source = locate(params.model)
    check_source(source, params.model, model)
    if source.kind == "folder":  # of a GGUF file it was read in the header; the hub's comes later
        check_files(source.path, params.model.source, model.shape.vocabulary)
    request = Request(params, model)
    notes = feasibility.check(request)
    shape, made = model.shape, request.designed
    designs.write(DATA / "sample" / "architectures.json", shape, made, request.table)
    counts = ", ".join(f"{count} {design}" for design, count in Counter(d.design for d in made).items())
    print(f"{len(made)} architectures of {params.model.source} ({shape.layers} layers): {counts}")
    print(*notes, sep="\n", end="\n" if notes else "")
    if told := designs.extrapolation(shape, made, params.budget, request.limits):
        print(f"note: {told}")
