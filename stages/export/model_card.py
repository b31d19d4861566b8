"""The README.md of the exported folder: a Hugging Face model card with YAML front matter."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from stages.export.report import format_metric, millions
from stages.export.report_data import (
    BASELINES,
    Contender,
    ReportData,
    change_percent,
    lower_is_better,
    metric_label,
)
from stages.export.verdict import percent, signed_percent, verdict

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
LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its id on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, {trust}dtype="auto")

inputs = tokenizer("Pruning a model means", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"""

REMOTE_CODE = (
    "The layers differ in width, which the stock class cannot express: the class that can is "
    "`modeling_prunecast.py` in this folder. Read it before you trust it."
)


def model_card(
    data: ReportData,
    winner: Contender,
    base_licence: str,
    *,
    base_model: str | None = None,
    languages: Sequence[str] = ("en",),
    remote_code: bool = True,
    gguf: str | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """Markdown with front matter for the exported folder.

    Args:
        winner: the contender that was exported.
        base_licence: the base model's licence, as an SPDX or hub identifier or a name.
        base_model: the base model's id on the hub, if it has one there.
        remote_code: whether the folder needs its modeling file; equal widths in every layer do not.
        gguf: the name of the GGUF file in the folder, if there is one.
        pictures: the PNG files that lie in the folder; "widths.png" and "tradeoff.png" are shown.
    """
    front = yaml.safe_dump(
        _front_matter(data, winner, base_licence, base_model, languages),
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )
    judgement = verdict(data)
    remarks = [f"- {sentence}" for sentence in (*judgement.details, *judgement.caveats)]
    sections = [
        f"# {_line(data.model)}, {percent(winner.overall_ratio)} pruned",
        _summary(data, winner, base_model),
        "## Load",
        REMOTE_CODE if remote_code else "Every layer has the same width: a plain model of its family.",
        f"```python\n{LOADING.format(trust='trust_remote_code=True, ' if remote_code else '')}\n```",
        *(
            [f"With llama.cpp, no Python:\n\n```sh\nllama-cli -m {gguf} -p 'Pruning a model means'\n```"]
            if gguf
            else []
        ),
        "## What it costs",
        _markdown_text(judgement.headline),
        _table(data),
        "Measured on the report part, which nothing was chosen by; ± is the standard error.",
        _markdown_text("\n".join(remarks)),
        *(f"![{alt}]({name}.png)" for name, alt in PICTURES.items() if f"{name}.png" in pictures),
        "## Limits",
        "- No fine-tuning followed the pruning; some recovery training will lower the perplexities.\n"
        "- What the base model gets wrong, this one gets wrong as well, and more often. Tasks other than "
        "those in the table were not measured.\n"
        "- Perplexities compare only under the same protocol, which is below.",
        "## Protocol",
        _entries([*data.protocol, *data.export_check]),
        "## Provenance",
        _entries(
            [("Architecture", winner.architecture.id), ("Base licence", base_licence), *data.provenance]
        ),
        "Made by Prunecast, after *Pruning Large Language Models via Accuracy Predictor* (arXiv 2309.09507).",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def body(card: str) -> str:
    """The card without its front matter."""
    return card.removeprefix("---\n").partition("\n---\n")[2].strip()


def _front_matter(
    data: ReportData, winner: Contender, licence: str, base_model: str | None, languages: Sequence[str]
) -> dict[str, Any]:
    identifier = licence.strip().lower()
    front: dict[str, Any] = {"language": list(languages)}
    if identifier in HUB_LICENCES:
        front["license"] = identifier
    else:
        front["license"] = "other"
        front["license_name"] = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-") or "unknown"
    if base_model:
        front["base_model"] = base_model
    front["library_name"] = "transformers"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["prunecast", "pruned", "structured-pruning"]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"{metric.removeprefix('ppl.')} (report part)", "type": "text"},
            "metrics": [{"type": "perplexity", "value": round(value, 4), "name": metric_label(metric)}],
        }
        for metric, value in winner.metrics.items()
        if metric.startswith("ppl.") and math.isfinite(value)
    ]
    if results:
        name = f"{' '.join(data.model.split())}-pruned-{winner.architecture.id}"
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _summary(data: ReportData, winner: Contender, base_model: str | None) -> str:
    widths = winner.architecture.widths
    gone = [
        f"{count} of {len(widths)} layers have no {kind}"
        for kind, count in (
            ("attention", sum(not width.has_attention for width in widths)),
            ("MLP", sum(not width.has_mlp for width in widths)),
        )
        if count
    ]
    text = (
        f"A structurally pruned version of {_line(base_model or data.model)}: "
        f"{percent(winner.overall_ratio)} of the decoder layers' parameters are removed, "
        f"{millions(winner.parameters)} remain in all ({winner.parameters:,}, embeddings included). "
        "Whole MLP channels and attention heads are gone, layer by layer in different numbers, "
        "so the model is smaller and faster as it is, without sparse kernels."
    )
    return text + (f" {'; '.join(gone)}." if gone else "")


def _table(data: ReportData) -> str:
    """The contenders as a Markdown table, with the winner's changes."""
    baselines = [name for name in BASELINES if data.contender(name)]
    header = ["", *(c.name for c in data.contenders), *(f"winner vs {name}" for name in baselines)]
    blanks = [""] * len(baselines)
    rows = [
        ["overall ratio", *(percent(c.overall_ratio) for c in data.contenders), *blanks],
        ["parameters", *(millions(c.parameters) for c in data.contenders), *blanks],
    ]
    for metric in data.metric_names:
        arrow = "↓" if lower_is_better(metric) else "↑"
        changes = [change_percent(data, name, metric) for name in baselines]
        rows.append(
            [
                f"{metric_label(metric)} {arrow}",
                *(_value(c, metric) for c in data.contenders),
                *(signed_percent(change) if change is not None else "–" for change in changes),
            ]
        )
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _value(contender: Contender, metric: str) -> str:
    error = contender.standard_errors.get(metric, math.nan)
    value = format_metric(metric, contender.metrics.get(metric))
    return f"{value} ± {format_metric(metric, error)}" if math.isfinite(error) else value


def _entries(entries: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_line(label)}: {_line(value)}" for label, value in entries)


def _line(text: str) -> str:
    return _markdown_text(" ".join(str(text).split()))


def _markdown_text(text: str) -> str:
    """Without HTML, which the hub would render."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
