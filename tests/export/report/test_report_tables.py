"""The report's tables and pictures of narrowing, front and predictor say what their files say."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from stages.architecture import Kind, Site
from stages.export.report import from_files, narrowing_chart, pictures, tables
from stages.export.report.data import ReportData, Trust, metrics, write_summary
from stages.export.report.page import build_report
from stages.sample.space import options
from stages.search import front
from stages.search import tables as search_tables
from stages.search.narrowed_space import Class, NarrowedSite
from stages.search.outcome import FRONT, WINNER, Candidate
from tests.small import SMALL, SMOLLM2, random_architectures


def words(page: str) -> str:
    """The page's text, tags and line breaks left out."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).replace("\u00a0", " ").split())


def test_the_front_is_read_as_it_was_written(tmp_path: Path) -> None:
    a, b = random_architectures(SMALL, 2)
    made = [
        Candidate(WINNER, a, 0.25, {"ppl.a": 30.0, "quiz.accuracy": 0.3}, {"log_ppl.a": 3.5}, 3.4),
        Candidate(FRONT, b, 0.15, {"ppl.a": 31.0, "quiz.accuracy": 0.3}, {"log_ppl.a": 3.3}, 3.4),
    ]
    search_tables.write_front(tmp_path / "front.csv", front.rows(made, SMALL))
    first, second = map(from_files.front_point, search_tables.read_front(tmp_path / "front.csv"))
    assert (first.name, first.architecture, first.dominated) == (FRONT, b.id, True)
    assert (second.name, second.architecture, second.dominated) == (WINNER, a.id, False)
    assert first.ppl == {"a": 31.0}
    assert first.forecast_ppl == {"a": pytest.approx(math.exp(3.3))}


@pytest.mark.usefixtures("no_pictures")
def test_all_that_is_asked_of_a_predictor_is_on_the_page(report_data: ReportData) -> None:
    text = words(build_report(report_data))
    held_out = "log_ppl.news log PPL, nats a token 0.871 0.940 0.083 0.112 ± 0.153 21 of 26"
    folds = "log_ppl.news log PPL, nats a token 0.902 0.951 84 pairs 0.823 21 pairs 85 % of the top 20"
    accuracy = "mmlu-dev.accuracy accuracy, 0 to 1 −0.213 0.070 84 pairs – 3 pairs 30 % of the top 20"
    ablation = "log_ppl.news without damages 81 0.744 0.090 0.951 0.823 85 %"
    other = "log_ppl.news xgboost on ratios 0.500 – 0.610 – –"
    for row in (held_out, folds, accuracy, other, ablation, "round 2 8 3 of 60 0.0120 0.600 +0.050 0.050"):
        assert row in text
    assert "80 % interval" in text
    assert "mmlu-dev.accuracy: hardly forecast at all" in text
    assert "news: hardly" not in text


def test_the_predictors_figures_are_in_the_metrics(report_data: ReportData) -> None:
    found = json.loads(json.dumps(metrics(report_data), allow_nan=False))["predictor"]
    assert found["log_ppl.news"]["coverage"] == 0.8077
    assert found["log_ppl.news"]["cross_validated"]["spearman_near_budget"] == 0.823
    assert found["mmlu-dev.accuracy"]["cross_validated"]["r2"] == -0.213


@pytest.mark.usefixtures("no_pictures")
def test_every_site_stands_with_its_class_and_widths(report_data: ReportData) -> None:
    rows = tables.narrowing_rows(report_data)
    assert [row["site"] for row in rows[:3]] == ["0 attention", "0 MLP", "1 attention"]
    assert len(rows) == 60
    ranked = sorted((row for row in rows if row["label"] != "exempt"), key=lambda row: row["rank"])
    shares = [report_data.narrowed[row["site"].replace(" ", ".").lower()].importance for row in ranked]
    assert shares == sorted(shares, reverse=True)
    labels = [row["label"] for row in ranked]
    assert labels == ["sensitive"] * 16 + ["other"] * 16 + ["insensitive"] * 16
    sensitive = next(row for row in ranked if row["site"].endswith("attention"))
    assert sensitive["widths"] == "3 × 3, 3 × 2"  # ratios 0 and 0.25; the next is 0.333
    text = words(build_report(report_data))
    row = rows[40]
    assert (
        f"{row['site']} {row['label']} {row['share']} {row['rank']} {row['ratios']} {row['widths']}" in text
    )


@pytest.mark.usefixtures("no_pictures")
def test_the_front_stands_in_a_table_only_where_one_was_asked_for(report_data: ReportData) -> None:
    text = words(build_report(report_data))
    for point in report_data.front:
        assert f"{point.name} {point.architecture} {100 * point.overall_ratio:.1f} %" in text
    assert text.count(" dominated ") == 2
    assert "python -m stages.export.by_id" in text
    limited = [
        dataclasses.replace(p, takes={"size_bytes": 4e8, "prefill_ms": 512.3}) for p in report_data.front
    ]
    text = words(build_report(dataclasses.replace(report_data, front=limited)))
    assert "weights, MB forecast prompt, ms forecast" in text
    assert text.count("400.00 512.30") == len(limited)
    baselines = [p for p in report_data.front if p.name != FRONT]
    bare = dataclasses.replace(report_data, front=baselines)
    assert "Other overall ratios" not in build_report(bare)
    assert "front" not in pictures.pictures(bare)


def test_finalists_are_counted_without_baselines_and_front(report_data: ReportData) -> None:
    more = [dataclasses.replace(report_data.finalists[0], design=FRONT), *report_data.finalists]
    assert dataclasses.replace(report_data, finalists=more).finalist_count == 10


@pytest.mark.parametrize("kind", list(Kind))
def test_a_widths_ratio_is_the_spaces(kind: Kind) -> None:
    site = Site(3, kind)
    for option in options(SMOLLM2, site, 32):
        assert narrowing_chart.ratio_of(SMOLLM2, site, option.width) == pytest.approx(option.ratio)


def test_classes_begin_where_their_sites_do() -> None:
    shares: list[tuple[Class, float]] = [("sensitive", 0.4), ("sensitive", 0.3), ("other", 0.2)]
    shares += [("insensitive", 0.1), ("exempt", 0.9)]
    sites = {
        str(i): NarrowedSite(Site(0, Kind.MLP), share, label, (0.0, 0.5))
        for i, (label, share) in enumerate(shares)
    }
    assert narrowing_chart.boundaries(sites) == {"sensitive": 0.3, "insensitive": 0.1}
    assert narrowing_chart.boundaries({"4": sites["4"]}) == {}


def test_the_narrowing_picture_marks_intervals_widths_and_the_winner(report_data: ReportData) -> None:
    """Read back from the drawing, strip by strip."""
    figure = Figure()
    narrowing_chart.draw_narrowing(figure, report_data)
    for kind, above, below in zip(Kind, figure.axes[::2], figure.axes[1::2], strict=True):
        sites = [s for s in report_data.shape.sites() if s.kind is kind]
        bars = [(round(b.get_y()), round(b.get_y() + b.get_height())) for c in below.containers for b in c]
        left = [report_data.narrowed[str(s)] for s in sites]
        assert bars == [tuple(100 * end for end in s.interval) for s in left if s.label != "exempt"]
        heights = [bar.get_height() for container in above.containers for bar in container]
        assert heights == pytest.approx([100 * s.importance for s in left])
        marks = np.asarray(below.collections[-1].get_offsets())
        winner = report_data.winner.architecture
        assert marks[:, 1] == pytest.approx([100 * winner.site_ratio(report_data.shape, s) for s in sites])


def test_a_bar_that_is_cut_off_carries_its_number(report_data: ReportData) -> None:
    sites = dict(report_data.narrowed)
    worst = max(sites, key=lambda name: sites[name].importance)
    sites[worst] = dataclasses.replace(sites[worst], importance=0.87)
    figure = Figure()
    narrowing_chart.draw_narrowing(figure, dataclasses.replace(report_data, narrowed=sites))
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["87"]


def test_the_front_picture_shows_measured_forecast_and_dominated(report_data: ReportData) -> None:
    figure = Figure()
    pictures.pictures(report_data)["front"].panels[0].draw(figure)
    lines = figure.axes[0].lines
    joined = [p for p in report_data.front if not p.dominated]
    assert list(lines[0].get_ydata()) == [p.ppl["wikipedia"] for p in joined]  # type: ignore[arg-type]
    dashes = [line.get_ydata()[0] for line in lines if line.get_marker() == "_"]  # type: ignore[index]
    assert dashes == [p.forecast_ppl["wikipedia"] for p in report_data.front if p.forecast_ppl]
    hollow = [line.get_ydata()[0] for line in lines if line.get_markerfacecolor() == "white"]  # type: ignore[index]
    assert hollow == [p.ppl["wikipedia"] for p in report_data.front if p.dominated]


def test_pages_without_what_is_new(make_report_data: Callable[..., ReportData]) -> None:
    data = make_report_data(layers=12, pairs=12)
    bare = dataclasses.replace(data, trust=Trust(), front=[], narrowed={})
    page = build_report(bare)
    assert "What the rounds forecast" not in page
    assert "What each group of features buys" not in page
    assert "narrowing" not in pictures.pictures(bare)


def test_ranking_by_the_predictors_gain_is_called_so(report_data: ReportData) -> None:
    figure = Figure()
    data = dataclasses.replace(report_data, narrowed_by="importance")
    narrowing_chart.draw_narrowing(figure, data)
    assert figure.axes[0].get_ylabel() == "share of gain, %"
    assert "share of the predictor's gain" in pictures.pictures(data)["narrowing"].caption


def test_what_the_search_bought_is_said_of_both_parts(report_data: ReportData) -> None:
    assert tables.search_words(report_data) == [
        "100 measured architectures lowered the objective on the selection part from 3.7100, the damage "
        "curves alone (one-shot), to 3.6900.",
        "On the report part, which chose nothing, perplexity changed by −7.5 % ± 1.1 on wikipedia, "
        "+0.9 % ± 0.6 on news: a gain on wikipedia.",
    ]
    first, _, last = report_data.steps
    cases = {
        "within two standard errors of nothing": replace(
            last, change_errors={"ppl.wikipedia": 4.0, "ppl.news": 1.0}
        ),
        "one window has no error, so nothing can be said of it": replace(last, change_errors={}),
        "a loss on news": replace(last, change_percent={"ppl.news": 5.0}, change_errors={"ppl.news": 1.0}),
        "100 measured architectures bought nothing: the best of them is that of the damage curves alone "
        "(one-shot)": replace(last, architecture=first.architecture),
    }
    for words, step in cases.items():
        said = tables.search_words(replace(report_data, steps=[first, step]))
        assert said[-1].rstrip(".").endswith(words)
    assert tables.search_words(replace(report_data, steps=[])) == []


def test_a_row_a_step_and_a_row_a_site(report_data: ReportData) -> None:
    first, second, _ = tables.step_rows(report_data)
    assert first["texts"] == [("40.00", ""), ("43.00", "")]
    assert second["texts"] == [("38.00", "−5.0 % ± 1.2"), ("42.90", "−0.2 % ± 0.9")]
    assert second["evaluations"] == "92"
    rows = tables.explained_rows(report_data)
    assert [row["site"] for row in rows[:2]] == ["0 attention", "0 MLP"]
    assert rows[0]["prices"][0] == tables.UNKNOWN


def test_the_summary_is_small_and_rounded(report_data: ReportData, tmp_path: Path) -> None:
    write_summary(tmp_path / "s.json", report_data)
    found = json.loads((tmp_path / "s.json").read_text())
    assert {"dense", "uniform", "simple", "winner"} < set(found)
    winner = report_data.winner
    assert found["winner"]["ppl.news"] == round(winner.metrics["ppl.news"], 2)
    assert set(found["winner"]) == {
        "overall_ratio",
        *(k for k in winner.metrics if k.startswith("ppl.") or k.endswith("accuracy")),
    }
    assert len((tmp_path / "s.json").read_text()) < 1500
