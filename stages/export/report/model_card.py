"""The README.md of the exported folder: a Hugging Face model card with YAML front matter."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from stages.export.report import card_text, proof_tables
from stages.export.report.card_text import flat, line, markdown_text
from stages.export.report.data import ReportData, change_percent
from stages.export.report.page import format_metric, millions
from stages.export.report.verdict import percent, signed_percent, verdict
from stages.export.results.final_table import PRUNED_BASELINES, Contender
from stages.export.results.record import BaseModel
from stages.metrics.metric import Shown
from stages.metrics.registered import metric_of

# The hub's identifiers of licences that base models commonly have; any other is "other" by name.
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-3-clause", "openrail", "gemma"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
)
PICTURES = {
    "widths": "Percentage of each site's parameters that is kept",
    "tradeoff": "Overall ratio against perplexity of every measured architecture",
}


def model_card(
    data: ReportData,
    winner: Contender,
    base: BaseModel,
    *,
    own_code: bool = True,
    gguf: Sequence[str] = (),
    pictures: Sequence[str] = (),
    registered: str = "",
) -> str:
    """Markdown with front matter for the exported folder.

    Args:
        winner: the contender that was exported.
        base: the dense model that it was made from.
        own_code: whether the folder needs its modeling file; equal widths in every layer do not.
        gguf: the names of the GGUF files in the folder.
        pictures: the PNG files that lie in the folder; "widths.png" and "tradeoff.png" are shown.
        registered: the name under which MLflow's registry has it, if it has.
    """
    front = yaml.safe_dump(_front_matter(data, winner, base), sort_keys=False, allow_unicode=True, width=110)
    shown = {name: f"![{alt}]({name}.png)" for name, alt in PICTURES.items() if f"{name}.png" in pictures}
    judgement = verdict(data)
    remarks = [f"- {sentence}" for sentence in (*judgement.details, *judgement.caveats)]
    sections = [
        f"# {line(base.name)}, {percent(winner.overall_ratio)} pruned",
        card_text.summary(winner, base),
        "## What was cut",
        card_text.cuts(data, winner),
        shown.get("widths", ""),
        "## Load",
        card_text.OWN_CODE if own_code else card_text.PLAIN,
        f"```python\n{card_text.LOADING.format(trust=', trust_remote_code=True' if own_code else '')}\n```",
        card_text.REGISTERED if own_code else "",
        "## Train",
        f"```python\n{card_text.ADAPTERS}\n```",
        "## Serve",
        card_text.serving(own_code, gguf, registered),
        "## What it costs",
        markdown_text(f"{judgement.lead} {judgement.headline}"),
        _table(data),
        "Measured on the report part of each corpus, which nothing was chosen by; ± is the standard error.",
        markdown_text("\n".join(remarks)),
        shown.get("tradeoff", ""),
        "## How much smaller and faster it is" if data.proof.comparisons else "",
        markdown_text(proof_tables.card(data.proof)),
        "## What it says" if data.answers else "",
        card_text.answers(data),
        "## In other types of weights" if data.alternatives else "",
        card_text.types(data),
        "## How it was chosen",
        card_text.choice(data),
        "## Limits",
        card_text.limits(data, winner, base),
        "## Licence",
        card_text.licence(base),
        "## Protocol",
        _entries([*data.protocol, *data.export_check]),
        "## Provenance",
        _entries([("base model", base.origin), *data.provenance]),
        "Made by Prunecast, after *Pruning Large Language Models via Accuracy Predictor* (arXiv 2309.09507).",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def note(data: ReportData) -> str:
    """The verdict and the final table in Markdown: what describes the run of the pipeline."""
    judgement = verdict(data)
    remarks = [f"- {sentence}" for sentence in (*judgement.details, *judgement.caveats)]
    lead = markdown_text(f"{judgement.lead} {judgement.headline}")
    return "\n\n".join([f"**{lead}**", _table(data), markdown_text("\n".join(remarks))])


def body(card: str) -> str:
    """The card without its front matter."""
    return card.removeprefix("---\n").partition("\n---\n")[2].strip()


def _front_matter(data: ReportData, winner: Contender, base: BaseModel) -> dict[str, Any]:
    identifier = base.licence.strip().lower()
    front: dict[str, Any] = {"language": [flat(x) for x in base.languages]} if base.languages else {}
    if identifier in HUB_LICENCES:
        front["license"] = identifier
    else:
        front["license"] = "other"
        front["license_name"] = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-") or "unknown"
    if base.hub_id:
        front["base_model"] = flat(base.hub_id)
    front["library_name"] = "transformers"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["prunecast", "pruned", "structured-pruning"]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"{metric.corpus} (report part)", "type": "text"},
            "metrics": [{"type": metric.title, "value": round(value, 4), "name": metric.label}],
        }
        for key, value in winner.metrics.items()
        if (metric := metric_of(key)).shown is Shown.VERDICT and math.isfinite(value)
    ]
    if results:
        name = f"{flat(base.name)}-pruned-{winner.architecture.id}"
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _table(data: ReportData) -> str:
    """The contenders as a Markdown table, with the winner's changes."""
    baselines = [name for name in PRUNED_BASELINES if data.contender(name)]
    header = ["", *(c.name for c in data.contenders), *(f"winner vs {name}" for name in baselines)]
    blanks = [""] * len(baselines)
    rows = [
        ["overall ratio", *(percent(c.overall_ratio) for c in data.contenders), *blanks],
        ["parameters", *(millions(c.parameters) for c in data.contenders), *blanks],
    ]
    for metric in data.metric_names:
        arrow = "↓" if metric_of(metric).lower_is_better else "↑"
        changes = [change_percent(data, name, metric) for name in baselines]
        rows.append(
            [
                f"{metric_of(metric).label} {arrow}",
                *(_value(c, metric) for c in data.contenders),
                *(signed_percent(change) if change is not None else "–" for change in changes),
            ]
        )
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines)


def _value(contender: Contender, metric: str) -> str:
    error = contender.standard_errors.get(metric, math.nan)
    value = format_metric(metric, contender.metrics.get(metric))
    return f"{value} ± {format_metric(metric, error)}" if math.isfinite(error) else value


def _entries(entries: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {line(label)}: {line(value)}" for label, value in entries)


def _cell(text: str) -> str:
    return line(text).replace("|", "\\|")
