"""The model card: front matter that the hub reads, and the same figures as the report."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.architecture import Architecture, LayerWidth
from stages.export.benchmark.comparison import Comparison, Conditions, Figures, Proof, Spread
from stages.export.report.data import ReportData
from stages.export.report.model_card import body, model_card, note
from stages.export.results.record import BaseModel

BASE = BaseModel("Base-135M", "a local folder", "mit", ("en",))


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def table(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_front_matter(report_data: ReportData) -> None:
    card = model_card(
        report_data,
        report_data.winner,
        BaseModel("base", "the hub", "Apache-2.0", ("en", "fr"), "org/base"),
    )
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "org/base"
    assert front["language"] == ["en", "fr"]
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    results = front["model-index"][0]["results"]
    assert [r["metrics"][0]["type"] for r in results] == ["perplexity", "perplexity"]
    ppl = report_data.winner.metrics["ppl.wikipedia"]
    assert results[0]["metrics"][0]["value"] == pytest.approx(ppl, 1e-4)


def test_front_matter_of_a_licence_that_the_hub_does_not_know(report_data: ReportData) -> None:
    card = model_card(
        report_data, report_data.winner, BaseModel("base", "a local folder", "My Own: Licence #2")
    )
    front = front_matter(card)
    assert front["license"] == "other"
    assert front["license_name"] == "my-own-licence-2"
    assert not {"base_model", "language"} & front.keys()
    assert "My Own: Licence #2" in card


def test_table(report_data: ReportData) -> None:
    alone = dataclasses.replace(report_data, alternatives=[])
    rows = table(model_card(alone, report_data.winner, BASE))
    assert len({len(row) for row in rows}) == 1
    by_label = {row[0]: row[1:] for row in rows}
    news = by_label["perplexity, news ↓"]
    for c, cell in zip(report_data.contenders, news, strict=False):
        assert cell == f"{c.metrics['ppl.news']:.2f} ± {c.standard_errors['ppl.news']:.2f}"
    ppl = {c.name: c.metrics["ppl.news"] for c in report_data.contenders}
    changes = [100 * (ppl["winner"] / ppl[name] - 1) for name in ("uniform", "simple")]
    assert news[4:] == [f"{change:+.1f} %".replace("-", "−") for change in changes]


def test_loading(report_data: ReportData) -> None:
    own_code = model_card(report_data, report_data.winner, BASE)
    plain = model_card(report_data, report_data.winner, BASE, own_code=False)
    code = own_code.split("```python\n")[1].split("```")[0]
    assert code.count("trust_remote_code=True") == 2, "transformers asks before it loads the tokenizer, too"
    assert "modeling_prunecast.py" in own_code
    assert "from stages.families import register" in own_code
    assert "```sh\ntransformers serve" not in own_code, "it does not serve classes that are not its own"
    assert 'AutoModelForCausalLM.from_pretrained(folder, dtype="auto")' in plain
    assert "transformers serve .\n" in plain
    assert "trust" not in plain
    assert "modeling_prunecast" not in plain
    for card in (own_code, plain):
        for block in card.split("```python\n")[1:]:
            compile(block.split("```")[0], "card", "exec")


def test_files_are_named_only_if_there(report_data: ReportData) -> None:
    bare = model_card(report_data, report_data.winner, BASE)
    assert "llama" not in bare
    assert "![" not in bare
    assert "Its terms are in this folder" not in bare
    base = dataclasses.replace(BASE, terms=(Path("/some/where/LICENSE.txt"),))
    full = model_card(
        report_data, report_data.winner, base,
        gguf=["small-F16.gguf", "small-Q8_0.gguf"], pictures=["widths.png", "search.png"],
    )  # fmt: skip
    assert "llama-server -m small-F16.gguf\nllama-server -m small-Q8_0.gguf" in full
    assert re.findall(r"!\[.+?\]\((.+?)\)", full) == ["widths.png"]
    assert "Its terms are in this folder: LICENSE.txt." in full
    assert "mlflow" not in bare
    listed = model_card(report_data, report_data.winner, BASE, registered="prunecast-model")
    assert "mlflow models serve -m models:/prunecast-model@champion" in listed


def test_what_was_cut_and_how_it_was_chosen(report_data: ReportData) -> None:
    card = model_card(report_data, report_data.winner, BASE)
    shape, widths = report_data.shape, report_data.winner.architecture.widths
    channels = sum(width.channels for width in widths)
    removed = 1 - sum(3 * 576 * w.channels + 576 * (w.channels > 0) for w in widths) / (
        30 * (3 * 576 * 1536 + 576)
    )
    assert channels < 30 * shape.channels
    assert f"Of the MLPs, {100 * removed:.1f} % is removed" in card
    untouched = sum(width.channels == 1536 for width in widths)
    assert f"nothing in {untouched} of 30 layers" in card
    assert "84 pruned architectures were measured" in card
    assert "rank correlation on pairs it had not seen: 0.94 on wikipedia, 0.94 on news" in card
    assert "in 600 trials" in card
    assert "The 10 most promising" in card


def test_a_base_without_licence_and_one_from_quantised_weights(report_data: ReportData) -> None:
    base = BaseModel("Base.Q4", "the file Base.Q4.gguf", quantisation="Q4_1")
    card = model_card(report_data, report_data.winner, base)
    assert front_matter(card)["license_name"] == "unknown"
    assert "state no licence" in card
    assert "quantised to Q4_1, and dequantised" in card
    assert "- base model: the file Base.Q4.gguf" in card
    assert "quantised" not in model_card(report_data, report_data.winner, BASE)


def test_the_note_of_a_run_begins_with_the_verdict_and_has_the_table(report_data: ReportData) -> None:
    found = note(report_data)
    assert found.startswith("**")
    assert "of its layers' parameters removed" in found.splitlines()[0]
    assert all(contender.name in found for contender in report_data.contenders)
    assert found.count("|") > 20


def test_the_body_has_no_front_matter(report_data: ReportData) -> None:
    card = model_card(report_data, report_data.winner, BASE)
    assert body(card).startswith("# Base-135M, ")
    assert body(card).endswith("(arXiv 2309.09507).")


def test_dropped_sublayers_are_told(report_data: ReportData) -> None:
    widths = list(report_data.winner.architecture.widths)
    widths[5] = LayerWidth(0, 0, 0)
    widths[6] = widths[6]._replace(channels=0)
    winner = dataclasses.replace(report_data.winner, architecture=Architecture(tuple(widths)))
    card = model_card(report_data, winner, BASE)
    assert "1 of 30 layers have no attention; 2 of 30 layers have no MLP." in card


def test_hostile_names(report_data: ReportData) -> None:
    data = dataclasses.replace(
        report_data,
        protocol=[("a|b", "<img src=x>\n- forged")],
    )
    name = "a: b\n---\n# <script>x</script>"
    card = model_card(data, data.winner, BaseModel(name, name, name, (name,), name, name))
    text = card.split("---\n\n", 1)[1]
    assert front_matter(card)["model-index"][0]["name"].startswith("a: b")
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"^(- forged|---)", text, re.MULTILINE)


def test_values_that_are_not_finite(report_data: ReportData) -> None:
    winner = dataclasses.replace(
        report_data.winner, metrics={**report_data.winner.metrics, "ppl.news": math.inf}
    )
    others = [c for c in report_data.contenders if c.name != "winner"]
    data = dataclasses.replace(report_data, contenders=[*others, winner])
    card = model_card(data, winner, BASE)
    assert not re.search(r"\b(nan|inf)\b", card, re.IGNORECASE)
    assert len(front_matter(card)["model-index"][0]["results"]) == 1


def test_card_is_the_same_twice(report_data: ReportData) -> None:
    cards = {model_card(report_data, report_data.winner, BASE, pictures=["widths.png"]) for _ in range(2)}
    assert len(cards) == 1


def test_how_much_faster_it_is_stands_in_the_card_where_it_was_measured(report_data: ReportData) -> None:
    speed = Spread(9, 10, 11)
    one = Figures(100, 800_000_000, 10**9, speed, speed, 20, 0, 0)
    found = Comparison(
        "PyTorch", "float32", one, one, Spread(1.1, 1.2, 1.3), Spread(1.4, 1.5, 1.6), 1.25, 2.0
    )
    proof = Proof((found,), Conditions(256, 16, 3, 2, 512, "news", 1, "<b>x86", 40))
    card = model_card(dataclasses.replace(report_data, proof=proof), report_data.winner, BASE)
    assert "## How much smaller and faster it is\n" in card
    assert "| 1.20 times as fast (1.10 to 1.30) | 96 % | 1.50 times as fast (1.40 to 1.60) | 75 % |" in card
    assert "&lt;b>x86" in card
    assert "smaller and faster it is" not in model_card(report_data, report_data.winner, BASE)
