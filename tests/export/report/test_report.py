"""The report: honest, complete, self-contained and the same from the same data."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.evaluate.results.division import DividedCorpus
from stages.export.benchmark.comparison import Comparison, Conditions, Figures, Proof, Spread
from stages.export.report import charts, pictures
from stages.export.report.data import ReportData, judge, metrics
from stages.export.report.page import build_report, format_metric
from stages.export.report.pictures import write_pictures
from stages.export.report.verdict import verdict
from stages.export.results.final_table import Contender, Taken

NAMES = (
    "alternatives",
    "widths",
    "explained",
    "tradeoff",
    "front",
    "forecast",
    "narrowing",
    "course",
    "search",
)


@pytest.fixture(scope="module")
def page(report_data: ReportData) -> str:
    return build_report(report_data)


_TERM = re.compile(r'<a class="term" href="#term-[a-z-]+" title="[^"]*">(.*?)</a>')


class _Page(HTMLParser):
    """What a page refers to, its pictures and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.captions = 0
        self.words: list[str] = []
        self.tag = ""
        self.feed(_TERM.sub(r"\1", text))  # what words of the glossary are linked to has tests of its own

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.tag = tag
        self.captions += tag == "figcaption"
        self.references += [values[key] or "" for key in ("src", "href", "srcset", "data") if key in values]
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        if self.tag != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def replace_metrics(data: ReportData, name: str, values: Mapping[str, float]) -> ReportData:
    def changed(c: Contender) -> Contender:
        return dataclasses.replace(c, metrics={**c.metrics, **values}) if c.name == name else c

    return dataclasses.replace(data, contenders=[changed(c) for c in data.contenders])


def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    parsed = _Page(page)
    assert parsed.references
    assert all(reference.startswith("data:image/") for reference in parsed.references)
    assert not parsed.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(|https?://", page)


def test_embedded_pictures_need_nothing_from_elsewhere(page: str) -> None:
    for image in _Page(page).images:
        svg = base64.b64decode((image["src"] or "").split(",")[1]).decode()
        targets = re.findall(r'(?:href|src)="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
        assert targets
        assert all(target.startswith("#") for target in targets)
        assert "<script" not in svg
        assert "DOCTYPE" not in svg


def test_every_picture_has_alternative_text_and_a_caption(page: str) -> None:
    parsed = _Page(page)
    assert len(parsed.images) == 2 + 1 + 1 + 2 + 2 + 2 + 1 + 1 + 1  # a panel a text
    assert parsed.captions == len(NAMES)
    alternatives = [image["alt"] or "" for image in parsed.images]
    assert all(len(text) > 20 for text in alternatives)
    assert len(set(alternatives)) == len(alternatives)


def test_every_figure_of_the_table_is_there(report_data: ReportData, page: str) -> None:
    text = _Page(page).text
    for c in report_data.contenders:
        assert f"{c.overall_ratio * 100:.1f} %" in text
        assert f"{c.parameters:,}" in text
        assert f"{c.metrics['ppl.news']:.2f}" in text
        assert f"± {c.standard_errors['ppl.news']:.2f}" in text
        assert f"{c.metrics['mmlu-dev.accuracy'] * 100:.1f} %" in text
        assert f"−{-c.metrics['mmlu-dev.log_likelihood']:.3f}" in text
    for label, value in (*report_data.protocol, *report_data.provenance, *report_data.export_check):
        assert label in text
        assert value in text
    for corpus in report_data.corpora.values():
        assert f"{corpus.found:,}" in text
    assert "log_ppl.news log PPL, nats a token 0.871" in text


def test_the_winners_widths_are_listed(report_data: ReportData, page: str) -> None:
    rows = re.findall(r'<tr><th scope="row">(\d+)</th><td>(.*?)</td><td>.*?</td>\s*<td>(.*?)</td>', page)
    found = [(int(layer), heads, channels) for layer, heads, channels in rows]
    assert found == [
        (layer, f"{width.kv_groups} × {width.heads_per_group}", f"{width.channels:,}")
        for layer, width in enumerate(report_data.winner.architecture.widths)
    ]


@pytest.mark.usefixtures("no_pictures")
def test_accuracy_within_its_errors_is_not_called_better(report_data: ReportData) -> None:
    def row(accuracy: float) -> str:
        page = build_report(replace_metrics(report_data, "winner", {"mmlu-dev.accuracy": accuracy}))
        match = re.search(r'<tr>\s*<th scope="row">accuracy.*?</tr>', page, re.DOTALL)
        assert match
        return match[0]

    within, beyond = row(0.30), row(0.60)  # each value has a standard error of 0.0566
    assert within.count("level") == 4  # a class and a word for each baseline
    assert "best" not in within
    assert beyond.count(">better<") == 2
    assert '<td class="best">60.0\u00a0%' in beyond


def test_an_accuracy_separates_by_the_rule_that_judges_it(report_data: ReportData) -> None:
    """Paired errors, where they are known: no caveat says what the table denies."""
    data = replace_metrics(report_data, "winner", {"mmlu-dev.accuracy": 0.30})
    caveat = "Accuracy on mmlu-dev does not separate the winner from uniform and simple pruning"
    assert any(caveat in sentence for sentence in verdict(data).caveats)
    errors = {name: {"mmlu-dev.accuracy": 0.5} for name in ("uniform", "simple")}
    paired = dataclasses.replace(data, change_errors=errors)
    assert judge(paired, "uniform", "mmlu-dev.accuracy") == "better"
    assert not any("does not separate" in sentence for sentence in verdict(paired).caveats)
    assert '<td class="best">30.0\u00a0%' in build_report(paired)


@pytest.mark.usefixtures("no_pictures")
def test_relative_changes(report_data: ReportData) -> None:
    bare = [dataclasses.replace(c, metrics={}) for c in report_data.contenders]
    data = dataclasses.replace(report_data, contenders=bare)
    data = replace_metrics(data, "uniform", {"ppl.a": 50.0, "ppl.b": 80.0})
    data = replace_metrics(data, "simple", {"ppl.a": 40.0, "q.log_likelihood": -12.0, "q.accuracy": 0.30})
    ours = {"ppl.a": 36.0, "ppl.b": 85.0, "q.log_likelihood": -9.0, "q.accuracy": 0.33}
    data = replace_metrics(data, "winner", ours)
    errors = {"uniform": {"ppl.a": 0.5, "ppl.b": 0.5}, "simple": {"ppl.a": 0.5, "q.log_likelihood": 0.5}}
    data = dataclasses.replace(data, change_errors=errors)
    changes = metrics(data)["winner_change_percent"]
    assert changes == {
        "uniform": {"ppl.a": -28.0, "ppl.b": 6.25},
        "simple": {"ppl.a": -10.0, "q.log_likelihood": 25.0, "q.accuracy": 10.0},
    }
    text = _Page(build_report(data)).text
    assert "−28.0 % ± 0.5 better" in text
    assert "+6.2 % ± 0.5 worse" in text
    assert "+25.0 % ± 0.5 better" in text


@pytest.mark.usefixtures("no_pictures")
def test_paired_errors_are_shown_with_the_change(report_data: ReportData) -> None:
    data = replace_metrics(report_data, "simple", {"ppl.news": 40.0})
    data = replace_metrics(data, "winner", {"ppl.news": 39.0})
    assert "−2.5 % open" in _Page(build_report(data)).text
    data = dataclasses.replace(data, change_errors={"simple": {"ppl.news": 1.5}})
    assert "−2.5 % ± 1.5 level" in _Page(build_report(data)).text


def test_the_verdict_heads_the_page(report_data: ReportData, page: str) -> None:
    found = verdict(report_data)
    text = _Page(page).text
    places = [
        text.index(sentence) for sentence in (found.lead, found.headline, *found.details, *found.caveats)
    ]
    assert places == sorted(places)
    assert places[-1] < text.index("report part")


def test_metrics_are_plain_finite_json(report_data: ReportData) -> None:
    data = replace_metrics(report_data, "uniform", {"ppl.news": math.inf, "mmlu-dev.accuracy": math.nan})
    found = json.loads(json.dumps(metrics(data), allow_nan=False))
    uniform = found["contenders"]["uniform"]
    finite = {"ppl.wikipedia", "bpb.wikipedia", "bpb.news", "mmlu-dev.log_likelihood"}
    assert set(uniform) == {"overall_ratio", "parameters", *finite}
    assert set(found["winner_change_percent"]["uniform"]) == finite
    assert found["contenders"]["winner"]["ppl.news"] == report_data.winner.metrics["ppl.news"]
    assert found["predictor"]["log_ppl.news"]["r2"] == 0.871


def test_metrics_know_nothing_of_dates(report_data: ReportData) -> None:
    later = dataclasses.replace(report_data, provenance=[("Date", "2030-01-01"), ("Seconds", "1")])
    assert metrics(later) == metrics(report_data)


def test_page_is_the_same_twice(make_report_data: Callable[..., ReportData]) -> None:
    first, second = (build_report(make_report_data(layers=12, pairs=12)) for _ in range(2))
    assert first == second


def test_pictures_are_the_same_twice(make_report_data: Callable[..., ReportData], tmp_path: Path) -> None:
    data = make_report_data(layers=12, pairs=12)
    first = write_pictures(data, tmp_path / "a" / "b")
    second = write_pictures(data, tmp_path / "c")
    assert [path.name for path in first] == [f"{name}.png" for name in NAMES]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(b"\x89PNG")
        assert one.read_bytes() == other.read_bytes()


def test_pictures_depend_on_the_data(report_data: ReportData) -> None:
    """Against a page that shows the same whatever was measured."""
    pairs = [dataclasses.replace(m, log_ppl={"wikipedia": 5.0}) for m in report_data.pairs]
    before = pictures.pictures(report_data)["tradeoff"].panels[0].svg()
    changed = dataclasses.replace(report_data, pairs=pairs)
    assert pictures.pictures(changed)["tradeoff"].panels[0].svg() != before


def test_eighty_layers(make_report_data: Callable[..., ReportData]) -> None:
    data = make_report_data(layers=80, pairs=20)
    assert "80 layers" in _Page(build_report(data)).text
    width, height = pictures.pictures(data)["widths"].panels[0].size
    assert width < 12  # inches: a cell stays wide enough for its number
    assert height > pictures.pictures(make_report_data())["widths"].panels[0].size[1]


def test_a_heat_map_of_few_layers_is_not_blown_up(make_report_data: Callable[..., ReportData]) -> None:
    assert not pictures.pictures(make_report_data(layers=12, pairs=12))["widths"].wide
    assert pictures.pictures(make_report_data())["widths"].wide


def test_values_that_are_missing_or_not_finite(report_data: ReportData) -> None:
    broken = dataclasses.replace(
        report_data.pairs[0],
        log_ppl={"wikipedia": math.inf},
        forecast_log_ppl={"wikipedia": math.nan, "news": 4.0},
    )
    data = dataclasses.replace(
        replace_metrics(report_data, "uniform", {"ppl.news": math.inf, "mmlu-dev.accuracy": math.nan}),
        pairs=[broken, *report_data.pairs],
        history=[math.inf, math.inf, 8.0, 7.5],
        predictor={"log_ppl.news": {"r2": math.nan, "mae": 0.1}},
        corpora={"bare": DividedCorpus("a.txt", 1, 1, "", {})},
    )
    text = _Page(build_report(data)).text
    assert not re.search(r"\b(nan|inf|None)\b", text, re.IGNORECASE)
    assert "∞" in text
    assert "The perplexity of uniform is not finite on news." in verdict(data).caveats
    assert all(panel.svg() for panel in pictures.pictures(data)["forecast"].panels)


def test_hardly_anything_measured(report_data: ReportData, tmp_path: Path) -> None:
    bare = ReportData("m", report_data.shape, [report_data.winner], [], [], {}, {}, [], {}, [], [], [])
    assert "nothing was measured to compare the winner with" in _Page(build_report(bare)).text
    assert [path.name for path in write_pictures(bare, tmp_path)] == ["widths.png"]


@pytest.mark.usefixtures("no_pictures")
def test_names_are_escaped(report_data: ReportData) -> None:
    evil = '<script>alert("x")</script>'
    data = dataclasses.replace(
        report_data, model=evil, protocol=[(evil, evil)], corpora={evil: DividedCorpus(evil, 1, 1, evil, {})}
    )
    page = build_report(data)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


@pytest.mark.usefixtures("no_pictures")
def test_a_report_without_a_winner_is_refused(report_data: ReportData) -> None:
    data = dataclasses.replace(report_data, contenders=report_data.contenders[:2])
    with pytest.raises(ValueError, match=r"\['dense', 'uniform'\]; expected one named 'winner'"):
        build_report(data)


@pytest.mark.usefixtures("no_pictures")
def test_a_metric_of_unknown_direction_is_refused(report_data: ReportData) -> None:
    with pytest.raises(ValueError, match="'mystery'"):
        build_report(replace_metrics(report_data, "winner", {"mystery": 1.0}))


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("ppl.a", 31.254, "31.25"),
        ("ppl.a", 12345.6, "12,345.60"),
        ("ppl.a", 2.5e9, "2.50e+09"),
        ("ppl.a", math.inf, "∞"),
        ("ppl.a", None, "–"),
        ("q.accuracy", 0.2862, "28.6 %"),
        ("q.log_likelihood", -1.23456, "−1.235"),
    ],
)
def test_format_metric(metric: str, value: float | None, expected: str) -> None:
    assert format_metric(metric, value) == expected


@pytest.mark.parametrize(("low", "high"), [(20, 150), (31, 44), (20, 1e7), (30.1, 30.2), (0.9, 1.1)])
def test_log_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = charts.log_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)


def test_accuracies_by_category_and_subject_are_shown_and_written(report_data: ReportData, page: str) -> None:
    text = _Page(page).text
    for words in (
        "accuracy, mmlu-dev, by category",
        "accuracy by letter, mmlu-dev, by subject",
        "high school physics 7 28.0 % 31.0 % ± 6.0 % 24.0 % 26.0 %",
        "bits per byte, news",
    ):
        assert words in text
    written = json.loads(json.dumps(metrics(report_data), allow_nan=False))
    assert len(written["question_groups"]) == 4
    assert written["question_groups"][0] == {
        "metric": "mmlu-dev.accuracy",
        "kind": "category",
        "name": "STEM",
        "questions": 40,
        "accuracy": {"dense": 0.31, "uniform": 0.24, "simple": 0.26, "winner": 0.28},
        "standard_errors": {"dense": 0.06},
    }
    assert written["protocol"] == [{"corpus": "news", "protocol": "standard", "predicted_tokens": 6132}]


@pytest.mark.usefixtures("no_pictures")
def test_limits_of_the_budget_are_shown_with_forecast_and_measured(report_data: ReportData) -> None:
    """And contenders of one latency are not told to have different budgets, whatever their ratios."""
    forecast = {"dense": 1300.0, "uniform": 1010.0, "simple": 1004.0, "winner": 990.0}
    prefill = Taken("prefill_ms", 1000.0, forecast, {"dense": 1320.0, "winner": 1100.0})
    sizes = {name: 1e6 * ms for name, ms in forecast.items()}
    size = Taken("size_bytes", 1e9, sizes, {"winner": 9.9e8})
    winner = dataclasses.replace(report_data.winner, overall_ratio=0.31)
    contenders = [winner if c.name == "winner" else c for c in report_data.contenders]
    without = dataclasses.replace(report_data, contenders=contenders)
    limited = dataclasses.replace(without, taken=[size, prefill])
    text = _Page(build_report(limited)).text
    assert "weights, MB 1,000.00 990.00 1,300.00 1,010.00 1,004.00 – 990.00 0.0 % –" in text
    assert "prompt, ms 1,000.00 990.00 1,300.00 1,010.00 1,004.00 1,320.00 1,100.00 −10.0 % −8.6 %" in text
    written = json.loads(json.dumps(metrics(limited), allow_nan=False))["limits"]
    assert written["prefill_ms"] == {
        "limit": 1000.0,
        "forecast": forecast,
        "measured": {"dense": 1320.0, "winner": 1100.0},
    }
    assert "limits" not in metrics(without)
    assert "What the budget limits" not in build_report(without)
    assert any("The budgets differ" in caveat for caveat in verdict(without).caveats)
    assert not any("The budgets differ" in caveat for caveat in verdict(limited).caveats)


@pytest.mark.usefixtures("no_pictures")
def test_the_proof_of_speed_is_shown_and_what_was_not_measured(report_data: ReportData) -> None:
    def figures(scale: float) -> Figures:
        speeds = Spread(90 / scale, 100 / scale, 110 / scale), Spread(9 / scale, 10 / scale, 11 / scale)
        return Figures(int(2e8 * scale), int(8e8 * scale), int(1e9 * scale), *speeds, 20 / scale, 0.0, 0.0)

    faster = Spread(1.1, 1.2, 1.3)
    one = Comparison("PyTorch", "float32", figures(1), figures(0.8), faster, faster, 1.25, 1.5)
    conditions = Conditions(256, 16, 3, 2, 512, "news", 2, "<x86>", 40)
    proof = Proof((one,), conditions, ("llama.cpp was not measured: it is not there.",))
    text = _Page(build_report(dataclasses.replace(report_data, proof=proof))).text
    for words in (
        "pruned 160.0 M 640.0 MB 800 MB 125 112 to 138 12.5 11.2 to 13.8 25.00",
        "compared −20.0 % −20.0 % −20.0 % 1.20 times as fast 1.10 to 1.30",
        "1.10 to 1.30 +25.0 %",
        "of the ideal 96 % of 1.25 times 80 % of 1.50 times",
        "on 2 threads of a CPU (<x86>); dense and pruned in turn, 3 rounds",
        "llama.cpp was not measured: it is not there.",
    ):
        assert words in text
    assert metrics(dataclasses.replace(report_data, proof=proof)) == metrics(report_data), (
        "timings in metrics"
    )
    assert "Smaller and faster" not in build_report(report_data)
    nothing = Proof(remarks=("Nothing was measured.",))
    bare = _Page(build_report(dataclasses.replace(report_data, proof=nothing))).text
    assert "Smaller and faster: the exported files beside the dense model's Nothing was measured." in bare
