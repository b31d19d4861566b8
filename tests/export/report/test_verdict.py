"""The verdict: honest whichever way the final table falls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from stages.export.report.data import ReportData
from stages.export.report.verdict import verdict


def contend(
    report_data: ReportData, ppl: Mapping[str, tuple[float, float]], ratios: Mapping[str, float] | None = None
) -> ReportData:
    """The same report with these perplexities on (wikipedia, news)."""
    changed = [
        dataclasses.replace(
            c,
            overall_ratio=(ratios or {}).get(c.name, 0.25),
            metrics=dict(zip(("ppl.wikipedia", "ppl.news"), ppl[c.name], strict=True)),
        )
        for c in report_data.contenders
        if c.name in ppl
    ]
    errors = {name: dict.fromkeys(("ppl.wikipedia", "ppl.news"), 0.5) for name in ("uniform", "simple")}
    return dataclasses.replace(report_data, contenders=changed, change_errors=errors)


def test_verdict_when_the_winner_wins(report_data: ReportData) -> None:
    data = contend(report_data, {"uniform": (50.0, 80.0), "simple": (40.0, 64.0), "winner": (36.0, 60.0)})
    found = verdict(data)
    assert found.headline == (
        "At an overall ratio of 25.0 % the winner beats both uniform and simple pruning on every text."
    )
    assert "−28.0 % on wikipedia (36.00 against 50.00)" in found.details[0]
    assert "−25.0 % on news (60.00 against 80.00)" in found.details[0]
    assert "−10.0 % on wikipedia" in found.details[1]
    assert not found.caveats


def test_the_lead_says_it_in_everyones_words(report_data: ReportData) -> None:
    ppl = {"dense": (20.0, 40.0), "winner": (36.0, 60.0)}
    data = dataclasses.replace(contend(report_data, ppl), name="SmolLM2-135M")
    assert verdict(data).lead == (
        f"SmolLM2-135M, 25 % of its layers' parameters removed: "
        f"{100 * (1 - data.winner.parameters / data.shape.total_parameters):.0f} % smaller, "
        "perplexity 1.80 times on wikipedia and 1.50 times on news."
    )


def test_verdict_when_simple_wins(report_data: ReportData) -> None:
    data = contend(report_data, {"uniform": (50.0, 80.0), "simple": (32.0, 50.0), "winner": (36.0, 60.0)})
    headline = verdict(data).headline
    assert "beats uniform pruning on every text, but loses to simple pruning on every text" in headline
    assert "Ship simple pruning instead" in headline


def test_verdict_when_both_baselines_win(report_data: ReportData) -> None:
    data = contend(report_data, {"uniform": (30.0, 50.0), "simple": (32.0, 50.0), "winner": (36.0, 60.0)})
    headline = verdict(data).headline
    assert "loses to both uniform and simple pruning" in headline
    assert "Ship uniform or simple pruning instead" in headline


def test_verdict_does_not_advise_a_baseline_that_removes_less(report_data: ReportData) -> None:
    ppl = {"uniform": (50.0, 80.0), "simple": (32.0, 50.0), "winner": (36.0, 60.0)}
    found = verdict(contend(report_data, ppl, {"simple": 0.2}))
    assert "loses to simple" in found.headline
    assert "Ship" not in found.headline
    assert "The budgets differ: simple pruning removes 20.0 %, the winner 25.0 %." in found.caveats


def test_verdict_when_mixed_or_level(report_data: ReportData) -> None:
    ppl = {"uniform": (36.0, 60.0), "simple": (40.0, 50.0), "winner": (36.0, 60.0)}
    headline = verdict(contend(report_data, ppl)).headline
    assert "is level with uniform pruning on every text" in headline
    assert "is mixed against simple pruning (beats it on wikipedia, loses on news)" in headline


def test_a_broken_winner_does_not_win(report_data: ReportData) -> None:
    ppl = {"uniform": (50.0, math.inf), "simple": (40.0, 64.0), "winner": (36.0, math.nan)}
    found = verdict(contend(report_data, ppl))
    assert "uniform pruning (beats it on wikipedia, is level on news)" in found.headline
    assert "simple pruning (beats it on wikipedia, loses on news)" in found.headline
    assert "The perplexity of winner is not finite on news." in found.caveats


def test_verdict_says_when_the_winner_is_a_baseline(report_data: ReportData) -> None:
    simple = report_data.contender("simple")
    assert simple is not None
    others = [c for c in report_data.contenders if c.name != "winner"]
    data = dataclasses.replace(report_data, contenders=[*others, dataclasses.replace(simple, name="winner")])
    assert "is the same architecture as simple pruning" in verdict(data).headline


def test_verdict_misses_an_unmeasured_baseline(report_data: ReportData) -> None:
    found = verdict(contend(report_data, {"uniform": (50.0, 80.0), "winner": (36.0, 60.0)}))
    assert found.headline.endswith("the winner beats uniform pruning on every text.")
    assert "Simple pruning was not measured, so that comparison is missing." in found.caveats


def test_paired_errors_decide_what_is_level(report_data: ReportData) -> None:
    data = contend(report_data, {"simple": (40.0, 64.0), "winner": (39.0, 60.0)})  # -2.5 %, -6.25 %
    assert "beats simple pruning on every text" in verdict(data).headline
    errors = {"simple": {"ppl.wikipedia": 1.5, "ppl.news": 1.5}}
    data = dataclasses.replace(data, change_errors=errors)
    assert "(beats it on news, is level on wikipedia)" in verdict(data).headline


def test_without_an_error_there_is_no_verdict(report_data: ReportData) -> None:
    ppl = {"uniform": (50.0, 80.0), "simple": (40.0, 64.0), "winner": (36.0, 60.0)}
    data = dataclasses.replace(contend(report_data, ppl), change_errors={})
    found = verdict(data)
    assert "the winner cannot be judged against both uniform and simple pruning, since" in found.headline
    assert any("raise export.measurement.windows" in caveat for caveat in found.caveats)
    one = {"uniform": {"ppl.news": 0.5}, "simple": {"ppl.news": 0.5, "ppl.wikipedia": math.nan}}
    partly = verdict(dataclasses.replace(data, change_errors=one))
    assert "beats both uniform and simple pruning on news (wikipedia cannot be judged)" in partly.headline


def test_a_dense_model_that_guesses_makes_no_headline(report_data: ReportData) -> None:
    vocabulary = report_data.shape.vocabulary
    ppl = dict.fromkeys(("dense", "uniform", "simple"), (1.2 * vocabulary, 0.9 * vocabulary))
    found = verdict(contend(report_data, ppl | {"winner": (0.8 * vocabulary, 0.8 * vocabulary)}))
    assert "nothing can be said of the winner: the dense model guesses" in found.headline
    trained = ppl | {"dense": (20.0, 0.9 * vocabulary), "winner": (30.0, 40.0)}
    assert "guesses" not in verdict(contend(report_data, trained)).headline
