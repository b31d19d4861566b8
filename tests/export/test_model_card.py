"""The model card: front matter that the hub reads, and the same figures as the report."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import yaml

from stages.architecture import Architecture, LayerWidth
from stages.export.model_card import model_card
from stages.export.report import ReportData


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def table(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_front_matter(report_data: ReportData) -> None:
    card = model_card(report_data, report_data.winner, "Apache-2.0", base_model="org/base")
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "org/base"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    results = front["model-index"][0]["results"]
    assert [r["metrics"][0]["type"] for r in results] == ["perplexity", "perplexity"]
    ppl = report_data.winner.metrics["ppl.wikipedia"]
    assert results[0]["metrics"][0]["value"] == pytest.approx(ppl, 1e-4)


def test_front_matter_of_a_licence_that_the_hub_does_not_know(report_data: ReportData) -> None:
    card = model_card(report_data, report_data.winner, "My Own: Licence #2")
    front = front_matter(card)
    assert front["license"] == "other"
    assert front["license_name"] == "my-own-licence-2"
    assert "base_model" not in front
    assert "My Own: Licence #2" in card


def test_table(report_data: ReportData) -> None:
    rows = table(model_card(report_data, report_data.winner, "mit"))
    assert len({len(row) for row in rows}) == 1
    by_label = {row[0]: row[1:] for row in rows}
    news = by_label["perplexity, news ↓"]
    for c, cell in zip(report_data.contenders, news, strict=False):
        assert cell == f"{c.metrics['ppl.news']:.2f} ± {c.standard_errors['ppl.news']:.2f}"
    ppl = {c.name: c.metrics["ppl.news"] for c in report_data.contenders}
    changes = [100 * (ppl["winner"] / ppl[name] - 1) for name in ("uniform", "simple")]
    assert news[4:] == [f"{change:+.1f} %".replace("-", "−") for change in changes]


def test_loading(report_data: ReportData) -> None:
    own_code = model_card(report_data, report_data.winner, "mit")
    plain = model_card(report_data, report_data.winner, "mit", remote_code=False)
    assert 'from_pretrained(folder, trust_remote_code=True, dtype="auto")' in own_code
    assert "modeling_prunecast.py" in own_code
    assert 'AutoModelForCausalLM.from_pretrained(folder, dtype="auto")' in plain
    assert "trust_remote_code" not in plain
    for card in (own_code, plain):
        compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


def test_files_are_named_only_if_there(report_data: ReportData) -> None:
    bare = model_card(report_data, report_data.winner, "mit")
    assert "llama-cli" not in bare
    assert "![" not in bare
    full = model_card(
        report_data, report_data.winner, "mit", gguf="small.gguf", pictures=["widths.png", "search.png"]
    )
    assert "llama-cli -m small.gguf" in full
    assert re.findall(r"!\[.+?\]\((.+?)\)", full) == ["widths.png"]


def test_dropped_sublayers_are_told(report_data: ReportData) -> None:
    widths = list(report_data.winner.architecture.widths)
    widths[5] = LayerWidth(0, 0, 0)
    widths[6] = widths[6]._replace(channels=0)
    winner = dataclasses.replace(report_data.winner, architecture=Architecture(tuple(widths)))
    card = model_card(report_data, winner, "mit")
    assert "1 of 30 layers have no attention; 2 of 30 layers have no MLP." in card


def test_hostile_names(report_data: ReportData) -> None:
    data = dataclasses.replace(
        report_data,
        model="a: b\n---\n# <script>x</script>",
        protocol=[("a|b", "<img src=x>\n- forged")],
    )
    card = model_card(data, data.winner, "mit")
    body = card.split("---\n\n", 1)[1]
    assert front_matter(card)["model-index"][0]["name"].startswith("a: b")
    assert "<script" not in body
    assert "<img" not in body
    assert not re.search(r"^- forged", body, re.MULTILINE)


def test_values_that_are_not_finite(report_data: ReportData) -> None:
    winner = dataclasses.replace(
        report_data.winner, metrics={**report_data.winner.metrics, "ppl.news": math.inf}
    )
    others = [c for c in report_data.contenders if c.name != "winner"]
    data = dataclasses.replace(report_data, contenders=[*others, winner])
    card = model_card(data, winner, "mit")
    assert not re.search(r"\b(nan|inf)\b", card, re.IGNORECASE)
    assert len(front_matter(card)["model-index"][0]["results"]) == 1


def test_card_is_the_same_twice(report_data: ReportData) -> None:
    cards = {model_card(report_data, report_data.winner, "mit", pictures=["widths.png"]) for _ in range(2)}
    assert len(cards) == 1
