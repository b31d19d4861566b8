"""The README.md of the exported folder: a Hugging Face model card with YAML front matter."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from stages.architecture import Kind, Site
from stages.export.base_model import BaseModel
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
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{trust})

inputs = tokenizer("Pruning a model means", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"""

OWN_CODE = """\
The layers differ in width, which the stock classes of transformers cannot express: the class that can is
`modeling_prunecast.py` in this folder, which `trust_remote_code` runs. Read it first; it is 300 lines. It
was tested with transformers 5.23."""
REGISTERED = """\
Where Prunecast is installed (`pip install --no-deps` is enough beside torch and transformers), the same
folder loads without code of its own, and without `trust_remote_code`:

```python
from stages.export.modeling_prunecast import register

register()  # once a process, before from_pretrained
```"""
PLAIN = """\
Every layer has the same width: a plain model of its family, which loads and serves wherever the base
model does."""


def model_card(
    data: ReportData,
    winner: Contender,
    base: BaseModel,
    *,
    own_code: bool = True,
    gguf: Sequence[str] = (),
    pictures: Sequence[str] = (),
) -> str:
    """Markdown with front matter for the exported folder.

    Args:
        winner: the contender that was exported.
        base: the dense model that it was made from.
        own_code: whether the folder needs its modeling file; equal widths in every layer do not.
        gguf: the names of the GGUF files in the folder.
        pictures: the PNG files that lie in the folder; "widths.png" and "tradeoff.png" are shown.
    """
    front = yaml.safe_dump(_front_matter(data, winner, base), sort_keys=False, allow_unicode=True, width=110)
    shown = {name: f"![{alt}]({name}.png)" for name, alt in PICTURES.items() if f"{name}.png" in pictures}
    judgement = verdict(data)
    remarks = [f"- {sentence}" for sentence in (*judgement.details, *judgement.caveats)]
    sections = [
        f"# {_line(base.name)}, {percent(winner.overall_ratio)} pruned",
        _summary(winner, base),
        "## What was cut",
        _cuts(data, winner),
        shown.get("widths", ""),
        "## Load",
        OWN_CODE if own_code else PLAIN,
        f"```python\n{LOADING.format(trust=', trust_remote_code=True' if own_code else '')}\n```",
        REGISTERED if own_code else "",
        "## Serve",
        _serving(own_code, gguf),
        "## What it costs",
        _markdown_text(judgement.headline),
        _table(data),
        "Measured on the report part of each corpus, which nothing was chosen by; ± is the standard error.",
        _markdown_text("\n".join(remarks)),
        shown.get("tradeoff", ""),
        "## How it was chosen",
        _choice(data),
        "## Limits",
        _limits(data, base),
        "## Licence",
        _licence(base),
        "## Protocol",
        _entries([*data.protocol, *data.export_check]),
        "## Provenance",
        _entries([("base model", base.origin), *data.provenance]),
        "Made by Prunecast, after *Pruning Large Language Models via Accuracy Predictor* (arXiv 2309.09507).",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def body(card: str) -> str:
    """The card without its front matter."""
    return card.removeprefix("---\n").partition("\n---\n")[2].strip()


def _front_matter(data: ReportData, winner: Contender, base: BaseModel) -> dict[str, Any]:
    identifier = base.licence.strip().lower()
    front: dict[str, Any] = {"language": [_flat(x) for x in base.languages]} if base.languages else {}
    if identifier in HUB_LICENCES:
        front["license"] = identifier
    else:
        front["license"] = "other"
        front["license_name"] = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-") or "unknown"
    if base.hub_id:
        front["base_model"] = _flat(base.hub_id)
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
        name = f"{_flat(base.name)}-pruned-{winner.architecture.id}"
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _summary(winner: Contender, base: BaseModel) -> str:
    return (
        f"A structurally pruned version of {_line(base.hub_id or base.name)}: "
        f"{percent(winner.overall_ratio)} of the decoder layers' parameters are removed, "
        f"{millions(winner.parameters)} remain in all ({winner.parameters:,}, embeddings included). "
        "Whole MLP channels and attention heads are gone, so the model is smaller and faster as it is, "
        "without sparse kernels."
    )


def _cuts(data: ReportData, winner: Contender) -> str:
    """How much each kind of sublayer lost, and which are gone."""
    widths, shape = winner.architecture.widths, data.shape
    sentences = []
    for kind, name in ((Kind.ATTENTION, "attention"), (Kind.MLP, "the MLPs")):
        dense = shape.layers * shape.site_parameters(kind, shape.dense_width)
        removed = 1 - sum(shape.site_parameters(kind, width) for width in widths) / dense
        ratios = [winner.architecture.site_ratio(shape, Site(layer, kind)) for layer in range(shape.layers)]
        sentences.append(
            f"Of {name}, {percent(removed)} is removed: from {percent(min(ratios), 0)} to "
            f"{percent(max(ratios), 0)} layer by layer, nothing in {sum(r == 0 for r in ratios)} of "
            f"{shape.layers} layers."
        )
    gone = [
        f"{count} of {len(widths)} layers have no {kind}"
        for kind, count in (
            ("attention", sum(not width.has_attention for width in widths)),
            ("MLP", sum(not width.has_mlp for width in widths)),
        )
        if count
    ]
    if gone:
        sentences.append(f"{'; '.join(gone)}.")
    return " ".join(sentences)


def _serving(own_code: bool, gguf: Sequence[str]) -> str:
    """Commands for an HTTP server, and for llama.cpp if there is a file for it."""
    trust = " --trust-remote-code" if own_code else ""
    text = (
        "Over HTTP, in OpenAI's protocol (`pip install 'transformers[serving]'`):\n\n"
        f"```sh\ntransformers serve .{trust}\n```"
    )
    if gguf:
        commands = "\n".join(f"llama-server -m {name}" for name in gguf)
        text += f"\n\nWith llama.cpp, no Python:\n\n```sh\n{commands}\n```"
    return text


def _choice(data: ReportData) -> str:
    """The steps from the dense model to this one, with their numbers."""
    classes = [kind for _, _, kind in data.narrowed.values()]
    finalists = sum(m.design not in ("dense", *BASELINES) for m in data.finalists)
    errors = [
        f"{errors['spearman']:.2f} on {target.removeprefix('log_ppl.')}"
        for target, errors in data.predictor.items()
        if target.startswith("log_ppl.") and math.isfinite(errors.get("spearman", math.nan))
    ]
    trust = f" (rank correlation on pairs it had not seen: {', '.join(errors)})" if errors else ""
    steps = [
        "Every unit of every layer was scored by its importance on calibration text, and the least "
        "important units of a site are those that go.",
        f"{len(data.pairs)} pruned architectures were measured on the selection part of the corpora, and "
        f"gradient-boosted trees learned from them to forecast log perplexity{trust}.",
        f"The search space was narrowed to what the predictor had learned ({classes.count('sensitive')} "
        f"sensitive sites limited, {classes.count('insensitive')} insensitive ones opened) and searched on "
        f"forecasts alone, in {len(data.history)} trials.",
        f"The {finalists} most promising and distinct architectures were measured on more of the selection "
        "part; this is the best *measured* one.",
    ]
    return _markdown_text("\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)))


def _limits(data: ReportData, base: BaseModel) -> str:
    texts = " and ".join(data.texts) or "no text"
    limits = [
        "No fine-tuning followed the pruning; some recovery training should lower the perplexities.",
        f"What goes was chosen, and what is left was refitted, on {_line(texts)}. Text unlike that, other "
        "languages, instruction following, safety and any task that is not in the table were not measured.",
        "What the base model gets wrong, this one gets wrong as well, and more often.",
        "Perplexities compare only under the same protocol, which is below.",
    ]
    if base.quantisation:
        limits.append(
            f"The base weights were read from a file quantised to {_line(base.quantisation)}, and dequantised: "
            "this model and the dense figures in the table carry that rounding."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(base: BaseModel) -> str:
    name = _line(base.name)
    if base.licence == "unknown":
        return (
            f"The files of {name} state no licence. A pruned model keeps the licence of the model that it "
            "was made from: look it up before you pass this one on."
        )
    terms = f" Its terms are in this folder: {', '.join(p.name for p in base.terms)}." if base.terms else ""
    return f"{_line(base.licence)}, as the files of {name} state; it holds for this model too.{terms}"


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


def _flat(text: str) -> str:
    return " ".join(str(text).split())


def _line(text: str) -> str:
    return _markdown_text(_flat(text))


def _markdown_text(text: str) -> str:
    """Without HTML, which the hub would render."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
