"""Stage `build-dataset`: journal -> data/build_dataset/pairs.parquet."""

from __future__ import annotations

import argparse

from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.config.params import Params
from stages.evaluate.results import context, journal
from stages.evaluate.results.damage import DamageCurves
from stages.metrics.registered import targets as metrics_of
from stages.sample import designs
from stages.stage import DATA


def run(params: Params, _: argparse.Namespace) -> None:
    evaluated = DATA / "evaluate"
    shape, designed = designs.read(DATA / "sample" / "architectures.json")
    measured_in = context.read(evaluated / "context.json")
    rows = journal.read(evaluated / "journal.jsonl").values()
    prefix_views = [row for row in rows if row.context == measured_in.digest and not row.weights]
    failed = {row.architecture.id: row.failed for row in prefix_views if row.failed}
    for architecture, why in failed.items():
        print(f"architecture {architecture} is left out: {why}")
    designed = [d for d in designed if d.architecture.id not in failed]
    metrics = {row.architecture.id: row.metrics for row in prefix_views}
    texts = list(params.corpora.texts)
    measured = {d.architecture: metrics[d.architecture.id] for d in designed if d.architecture.id in metrics}
    expected = DamageCurves.read(evaluated / "curvature.json")
    curves = DamageCurves.of_pairs(shape, measured, texts, expected)
    (curves or DamageCurves({})).write(DATA / "build_dataset" / "damage.json")
    scores = evaluated / "importance.safetensors"
    features = Features.of_model(shape, params.build_dataset.band, scores, curves)
    formats = measured_in.question_formats
    targets = [metric.key for metric in metrics_of(texts, list(params.corpora.questions), formats)]
    section = params.build_dataset
    pairs = table.build(designed, metrics, features, targets, section.seed, section.held_out)
    table.write(DATA / "build_dataset" / "pairs.parquet", pairs, features.names, targets)
    held_out = int((pairs["split"] == table.HELD_OUT).sum())
    print(f"{len(pairs)} pairs, {held_out} held out; {len(features.names)} features, {len(targets)} targets")
