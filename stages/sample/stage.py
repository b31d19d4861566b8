"""Stage `sample`: params -> data/sample/architectures.json."""

from __future__ import annotations

import argparse
from collections import Counter

from stages.config.params import Params
from stages.families import llama_cpp
from stages.sample import designs
from stages.sample.latency import table_of
from stages.sample.limits import limits_of
from stages.sample.source import locate, read_model
from stages.sample.weight_check import check_source
from stages.stage import DATA


def run(params: Params, _: argparse.Namespace) -> None:
    model = read_model(params.model)
    check_source(locate(params.model), params.model, model)
    shape = model.shape
    if params.export.gguf and (reason := llama_cpp.refusal(shape.family, model.recipe)):
        print(f"GGUF will not be written: {reason}")
    budget = params.budget
    table = table_of(shape, budget, params.sample.mlp_granularity) if budget.timed else None
    limits = limits_of(shape, budget, table)
    designs.check_budget(shape, params.sample, budget, limits)
    made = designs.all_designs(shape, params.sample, budget, limits)
    designs.write(DATA / "sample" / "architectures.json", shape, made, table)
    counts = ", ".join(f"{count} {design}" for design, count in Counter(d.design for d in made).items())
    print(f"{len(made)} architectures of {params.model.source} ({shape.layers} layers): {counts}")
    if told := designs.extrapolation(shape, made, budget, limits):
        print(f"note: {told}")
