"""The paragraphs of the model card, in Markdown without HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from stages.architecture import Kind
from stages.export.report import alternatives
from stages.export.report.data import ReportData
from stages.export.report.page import millions
from stages.export.report.verdict import percent
from stages.export.results.final_table import RECOVERED, Contender
from stages.export.results.record import BaseModel
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import by_corpus, metric_of

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its id on the hub
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{trust})

inputs = tokenizer("Pruning a model means", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"""

ADAPTERS = """\
from peft import LoraConfig, get_peft_model

adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, adapters)  # train it, say with transformers' Trainer; then
model = model.merge_and_unload()
model.save_pretrained("recovered")"""

OWN_CODE = """\
The layers differ in width, which the stock classes of transformers cannot express: the class that can is
`modeling_prunecast.py` in this folder, which `trust_remote_code` runs. Read it first; it is 300 lines. It
needs transformers 5.15 or newer, and was tested with 5.23."""
REGISTERED = """\
Where Prunecast is installed (`pip install --no-deps` is enough beside torch and transformers), the same
folder loads without code of its own, and without `trust_remote_code`:

```python
from stages.families import register

register()  # once a process, before from_pretrained
```"""
PLAIN = """\
Every layer that is left has the same width: a plain model of its family, which loads and serves wherever
the base model does."""


def summary(winner: Contender, base: BaseModel) -> str:
    return (
        f"A structurally pruned version of {line(base.hub_id or base.name)}: "
        f"{percent(winner.overall_ratio)} of the decoder layers' parameters are removed, "
        f"{millions(winner.parameters)} remain in all ({winner.parameters:,}, embeddings included). "
        "Whole MLP channels and attention heads are gone, so the model is smaller and faster as it is, "
        "without sparse kernels."
        + (
            " What was left was then trained: how, says the protocol below."
            if winner.name == RECOVERED
            else ""
        )
    )


def cuts(data: ReportData, winner: Contender) -> str:
    """How much each kind of sublayer lost, and which are gone."""
    widths, shape = winner.architecture.widths, data.shape
    sentences = []
    for kind, name in ((Kind.ATTENTION, "attention"), (Kind.MLP, "the MLPs")):
        sites = [site for site in shape.sites() if site.kind is kind]
        dense = sum(map(shape.dense_parameters, sites))
        removed = 1 - sum(shape.site_parameters(kind, width) for width in widths) / dense
        ratios = [winner.architecture.site_ratio(shape, site) for site in sites]
        sentences.append(
            f"Of {name}, {percent(removed)} is removed: from {percent(min(ratios), 0)} to "
            f"{percent(max(ratios), 0)} layer by layer, nothing in {sum(r == 0 for r in ratios)} of "
            f"{len(sites)} layers."
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
    if shape.unlike:
        sentences.insert(0, "The base model had been pruned before; shares are of what it had left.")
    return " ".join(sentences)


def serving(own_code: bool, gguf: Sequence[str], registered: str) -> str:
    """Commands of servers that were seen to serve such a folder."""
    extra = " --model-impl transformers --trust-remote-code" if own_code else ""
    ways = [f"With vLLM, over HTTP in OpenAI's protocol:\n\n```sh\nvllm serve .{extra}\n```"]
    if own_code:
        ways.append(
            "Servers that build stock classes by their names, `transformers serve` among them, cannot hold "
            "widths that differ from layer to layer; within a server of your own, load it as above."
        )
    else:
        ways.append(
            "Over HTTP, in OpenAI's protocol (`pip install 'transformers[serving]'`):\n\n"
            "```sh\ntransformers serve .\n```"
        )
    if gguf:
        commands = "\n".join(f"llama-server -m {name}" for name in gguf)
        ways.append(
            "With llama.cpp, no Python (its files were made in `gguf`, beside this folder):\n\n"
            f"```sh\n{commands}\n```"
        )
    if registered:
        code = "; it runs the code in the folder" if own_code else ""
        ways.append(
            "From the MLflow registry of the project that made it, as long as no better one is the champion "
            f"(`MLFLOW_TRACKING_URI` names the store{code}):\n\n"
            f"```sh\nmlflow models serve -m models:/{registered}@champion --env-manager local\n```"
        )
    return "\n\n".join(ways)


def answers(data: ReportData) -> str:
    """Prompts that the dense model and this one answered."""
    if data.answers is None:
        return ""
    blocks = []
    for prompt, found in alternatives.said(data):
        quoted = [f"- *{name}*: {verbatim(text) if text else '(nothing)'}" for name, text in found]
        blocks.append("\n".join([verbatim(prompt), "", *quoted]))
    told = [
        markdown_text(sentence) for sentence in (*alternatives.divergence_words(data), data.answers.words)
    ]
    return "\n\n".join([*blocks, " ".join(told)])


def types(data: ReportData) -> str:
    """Dense and pruned model in llama.cpp's types, in a table."""
    if not data.alternatives:
        return ""
    labels = [metric_of(key).label for key in data.alternatives[0].metrics]
    table = [["model, type", "weights", *labels], ["---", *["---:"] * (1 + len(labels))]]
    for row in alternatives.rows(data):
        values = [f"{value} {error}".strip() for value, error in row["texts"]]
        table.append([row["name"], row["size"], *values])
    drawn = "\n".join("| " + " | ".join(line(cell) for cell in row) + " |" for row in table)
    return "\n\n".join([drawn, markdown_text(" ".join(alternatives.words(data)))])


def choice(data: ReportData) -> str:
    """The steps from the dense model to this one, with their numbers."""
    classes = [site.label for site in data.narrowed.values()]
    errors = [
        f"{errors['spearman']:.2f} on {text}"
        for text, errors in by_corpus(data.predictor, LOG_PPL).items()
        if math.isfinite(errors.get("spearman", math.nan))
    ]
    trust = f" (rank correlation on pairs it had not seen: {', '.join(errors)})" if errors else ""
    steps = [
        "Every unit of every layer was scored by its importance on calibration text, and the least "
        "important units of a site are those that go.",
        f"{sum(pair.overall_ratio > 0 for pair in data.pairs)} pruned architectures were measured on the "
        f"selection part of the corpora, and a predictor ({data.trust.kind}) learned from them to forecast "
        f"log perplexity{trust}.",
        f"The search space was narrowed to what the predictor had learned ({classes.count('sensitive')} "
        f"sensitive sites limited, {classes.count('insensitive')} insensitive ones opened) and searched on "
        f"forecasts alone, in {len(data.history)} trials.",
        f"The {data.finalist_count} most promising and distinct architectures were measured on more of the "
        "selection part; this is the best *measured* one.",
    ]
    return markdown_text("\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)))


def limits(data: ReportData, winner: Contender, base: BaseModel) -> str:
    texts = " and ".join(data.texts) or "no text"
    limits = (
        []
        if winner.name == RECOVERED
        else [
            "No fine-tuning followed the pruning; some recovery training should lower the perplexities.",
        ]
    )
    limits += [
        f"What goes was chosen, and what is left was refitted, on {line(texts)}. Text unlike that, other "
        "languages, instruction following, safety and any task that is not in the table were not measured.",
        "What the base model gets wrong, this one gets wrong as well, and more often.",
        "Perplexities compare only under the same protocol, which is below.",
    ]
    if base.quantisation:
        limits.append(
            f"The base weights came from a file quantised to {line(base.quantisation)}, and dequantised: "
            "this model and the dense figures in the table carry that rounding."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def licence(base: BaseModel) -> str:
    name = line(base.name)
    if base.licence == "unknown":
        return (
            f"The files of {name} state no licence. A pruned model keeps the licence of the model that it "
            "was made from: look it up before you pass this one on."
        )
    terms = f" Its terms are in this folder: {', '.join(p.name for p in base.terms)}." if base.terms else ""
    return f"{line(base.licence)}, as the files of {name} state; it holds for this model too.{terms}"


def flat(text: str) -> str:
    return " ".join(str(text).split())


def verbatim(text: str) -> str:
    """Text of someone else's on one line, as code: nothing in it is markup."""
    found = flat(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", found)), default=0))
    return f"{fence} {found} {fence}" if len(fence) > 1 else f"`{found}`"


def line(text: str) -> str:
    return markdown_text(flat(text))


def markdown_text(text: str) -> str:
    """The text without HTML, which the hub would render."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
