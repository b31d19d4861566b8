"""The report says whether quantising alone would have served, and what the models say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.export.benchmark.comparison import Comparison, Figures, Proof, Spread
from stages.export.report import alternatives, alternatives_chart, card_text
from stages.export.report.data import ReportData
from stages.export.report.page import build_report
from stages.export.report.verdict import verdict


def test_the_smallest_that_beats_is_named(report_data: ReportData) -> None:
    found = {key: (by.model, by.type) for key, by in alternatives.beaten(report_data.alternatives).items()}
    assert found == {("winner", "F16"): ("dense", "Q4_0"), ("winner", "Q8_0"): ("dense", "Q4_0"),
                     ("dense", "F16"): ("dense", "Q8_0")}  # fmt: skip
    assert alternatives.words(report_data) == [
        "Where only bytes are short, quantise instead: the dense model in Q4_0 takes 90 MB and is on no text "
        "worse than the pruned one in F16 (216 MB) and Q8_0 (115 MB).",
        "The pruned model in Q4_0, 75 MB, is smaller than the dense one in any of these types (perplexity "
        "42.40 on wikipedia, 42.40 on news).",
    ]
    assert alternatives.words(report_data)[0] in verdict(report_data).details


def test_a_dense_type_that_beats_is_said_whatever_else_beats(report_data: ReportData) -> None:
    """Also where by chance a smaller pruned one measures a hair better than the larger ones."""
    lucky = [
        replace(a, metrics=dict.fromkeys(a.metrics, 32.39)) if (a.model, a.type) == ("winner", "Q4_0") else a
        for a in report_data.alternatives
    ]
    said = alternatives.words(replace(report_data, alternatives=lucky))
    assert "dense model in Q4_0 takes 90 MB and is on no text worse than the pruned one in F16" in said[0]


def test_where_pruning_is_the_better_way_nothing_else_is_said(report_data: ReportData) -> None:
    better = [
        replace(a, metrics=dict.fromkeys(a.metrics, 10.0)) if a.model == "winner" else a
        for a in report_data.alternatives
    ]
    large = [replace(a, size_bytes=10**9) if (a.model, a.type) == ("winner", "Q4_0") else a for a in better]
    said = alternatives.words(replace(report_data, alternatives=large))
    assert said == ["In no type does a dense model as small do as well."]
    assert alternatives.words(replace(report_data, alternatives=[])) == []
    worse_on_one = [
        replace(a, metrics={**a.metrics, "ppl.news": 99.0}) if a.model == "dense" else a
        for a in report_data.alternatives
    ]
    assert not any(
        "quantise instead" in s for s in alternatives.words(replace(report_data, alternatives=worse_on_one))
    )


def test_speeds_of_llama_cpp_stand_beside_where_it_ran(report_data: ReportData) -> None:
    spread = Spread(90.0, 100.0, 110.0)
    figures = Figures(1, 1, 1, spread, replace(spread, median=16.6), 20.0, 0.0, 0.0)
    runs = [
        Comparison(
            "llama.cpp",
            kind,
            figures,
            replace(figures, decode=replace(spread, median=21.0)),
            spread,
            spread,
            1.3,
            1.2,
        )
        for kind in ("F16", "Q8_0", "Q4_0")
    ]
    assert not alternatives_chart.has_speeds(report_data)
    with_speeds = replace(report_data, proof=Proof(tuple(runs)))
    assert alternatives_chart.has_speeds(with_speeds)
    rows = {row["name"]: row["speeds"] for row in alternatives.rows(with_speeds)}
    assert rows["dense, F16"] == ["100", "16.6"]
    assert rows["pruned, Q4_0"] == ["100", "21"]
    assert not alternatives_chart.has_speeds(replace(report_data, proof=Proof(tuple(runs[:2]))))


@pytest.mark.usefixtures("no_pictures")
def test_answers_stand_on_the_page_and_the_card_and_are_no_markup(report_data: ReportData) -> None:
    page, card = build_report(report_data), card_text.answers(report_data)
    assert "<samp>Paris,\n&lt;b&gt;a city&lt;/b&gt;.</samp>" in page
    assert "- *winner*: `Paris, <b>a city</b>.`" in card
    assert card_text.verbatim("a ``b`` c") == "``` a ``b`` c ```"
    for text in (page, card):
        assert "0.632 ± 0.033 nats a token on wikipedia and 0.460 nats a token on news" in text
    assert "| dense, Q8_0 | 143.0 MB | 20.88 ± 1.50 | 20.88 ± 1.50 |" in card_text.types(report_data)
    nothing = replace(report_data, answers=None, alternatives=[])
    assert card_text.answers(nothing) == card_text.types(nothing) == ""
    assert "What it says" not in build_report(nothing)
