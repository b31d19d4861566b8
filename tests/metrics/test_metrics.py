"""Metrics: written and read, computed, formatted, and taken apart nowhere else."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.config.choices import METRICS
from stages.evaluate.text import mmlu, perplexity
from stages.metrics.bits_per_byte import BITS_PER_BYTE
from stages.metrics.log_likelihood import LOG_LIKELIHOOD
from stages.metrics.metric import (
    Metric,
    QuestionLikelihoods,
    QuestionMetric,
    Shown,
    TextLikelihoods,
    asked,
    format_of,
)
from stages.metrics.perplexity import LOG_PPL, PPL
from stages.metrics.perplexity import perplexity as perplexity_of
from stages.metrics.registered import by_corpus, metric_of, of_questions, of_text, shown, targets

ROOT = Path(__file__).parents[2]
NAMES = ("ppl", "log_ppl", "bpb", "accuracy", "accuracy_norm", "log_likelihood")

corpora = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True).filter(lambda name: name not in NAMES)


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    assert perplexity_of(800.0) == math.inf
    assert perplexity_of(2.5) == math.exp(2.5)


# --- written and read -------------------------------------------------------------------------------


def test_keys_are_those_of_every_journal_so_far():
    assert [m.key for m in of_text("news")] == ["ppl.news", "log_ppl.news", "bpb.news"]
    plain = [m.key for m in of_questions("mmlu")]
    assert plain == ["mmlu.accuracy", "mmlu.accuracy_norm", "mmlu.log_likelihood"]
    by_letter = [m.key for m in of_questions(asked("mmlu", "letter"))]
    assert by_letter == ["mmlu.letter.accuracy", "mmlu.letter.log_likelihood"]
    assert METRICS.names == list(NAMES)


@given(corpora, st.sampled_from(["likelihood", "letter"]))
def test_what_is_written_is_read(corpus: str, style: str):
    questions = asked(corpus, style)  # type: ignore[arg-type]
    for metric in (*of_text(corpus), *of_questions(questions)):
        found = metric_of(metric.key)
        assert found == metric
        assert found.corpus == corpus
        if isinstance(found, QuestionMetric):
            assert found.style == format_of(questions) == style


@pytest.mark.parametrize(
    "key",
    ["mystery", "mystery.news", "ppl", "ppl.", ".accuracy", "news.ppl", "q.letter.accuracy_norm", ""],
)
def test_what_no_metric_is_called_is_refused(key: str):
    with pytest.raises(ValueError, match=f"no metric is called '{re.escape(key)}'; expected NAME.TEXT"):
        metric_of(key)


def test_targets_are_corpus_by_corpus_and_what_has_a_law_first():
    texts = ["log_ppl.a", "log_ppl.b"]
    plain = ["q.log_likelihood", "q.accuracy"]
    letter = ["q.letter.log_likelihood", "q.letter.accuracy"]
    assert [m.key for m in targets(["a", "b"], ["q"], ["likelihood"])] == texts + plain
    assert [m.key for m in targets(["a", "b"], ["q"], ["letter"])] == texts + letter
    assert [m.key for m in targets(["a", "b"], ["q"], ["letter", "likelihood"])] == texts + letter + plain


def test_of_many_values_those_of_one_metric():
    values = {"ppl.a": 1.0, "log_ppl.a": 2.0, "name": 3.0, "log_ppl.b": 4.0}
    assert by_corpus(values, LOG_PPL) == {"a": 2.0, "b": 4.0}
    assert by_corpus(values, PPL) == {"a": 1.0}


def test_where_people_see_them():
    values = dict.fromkeys([m.key for m in (*of_text("a"), *of_questions("q.letter"))], 0.0)
    assert list(shown(values, Shown.VERDICT)) == ["ppl.a"]
    assert list(shown(values, Shown.FRONT)) == ["ppl.a", "q.letter.accuracy"]
    report = ["ppl.a", "bpb.a", "q.letter.accuracy", "q.letter.log_likelihood"]
    assert list(shown(values, Shown.REPORT)) == report


# --- what each is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "label", "unit", "lower", "law"),
    [
        ("ppl.a", "perplexity, a", "perplexity", True, 1),
        ("log_ppl.a", "log perplexity, a", "log PPL, nats a token", True, 1),
        ("bpb.a", "bits per byte, a", "bits per byte", True, 1),
        ("q.accuracy", "accuracy, q", "accuracy, 0 to 1", False, 0),
        ("q.accuracy_norm", "accuracy normalised by length, q", "accuracy, 0 to 1", False, 0),
        ("q.letter.accuracy", "accuracy by letter, q", "accuracy, 0 to 1", False, 0),
        ("q.log_likelihood", "log-likelihood of the right answer, q", "nats a question", False, -1),
        ("q.letter.log_likelihood", "log-likelihood of the right letter, q", "nats a question", False, -1),
    ],
)
def test_labels_units_directions_and_laws(key: str, label: str, unit: str, lower: bool, law: int):
    metric = metric_of(key)
    assert (metric.label, metric.unit, metric.lower_is_better, metric.law) == (label, unit, lower, law)
    assert metric.cost(2.0) == (2.0 if lower else -2.0)


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("ppl.a", 12345.6, "12,345.60"),
        ("ppl.a", 2.5e9, "2.50e+09"),
        ("bpb.a", 1.23456, "1.2346"),
        ("q.accuracy", 0.2862, "28.6 %"),
        ("q.letter.log_likelihood", -1.23456, "−1.235"),
    ],
)
def test_formats(key: str, value: float, written: str):
    assert metric_of(key).format(value) == written


GOLDEN = {
    "ppl": (1, 2.690453, 2.690453),
    "log_ppl": (1, 0.98971, 1.0),
    "bpb": (1, 0.713922, 0.721348),
    "accuracy": (1, 0.5, 1.0),
    "accuracy_norm": (1, 0.5, 1.0),
    "log_likelihood": (1, -1.15, 1.0),
}
"""Version, value and slope of each of ours on the likelihoods below."""


def measured() -> dict[str, float]:
    likelihoods = torch.tensor([-0.1, -2.0, -0.5, -1.3, -0.6938, -1.34446], dtype=torch.float64)
    values, _ = perplexity.scores(likelihoods, 2, 12)
    items = [mmlu.Item(n, "art", [9], [[1]] * 4, a, [1] * 4, 0) for n, a in (("a", 1), ("b", 2))]
    choices = torch.tensor([-3.0, -1.5, -2.0, -2.5, -0.5, -1.0, -0.8, -0.6], dtype=torch.float64)
    return values | mmlu.scores(choices, items)[0]


@pytest.mark.parametrize("name", NAMES)
def test_golden_values(name: str):
    """A value that moves makes rows of journals stale: raise the metric's version, then change it here."""
    version, value, slope = GOLDEN[name]
    metric: Metric = METRICS[name]
    values = measured()
    assert metric.version == version
    assert values[name] == pytest.approx(value, abs=1e-5)
    assert metric.slope(values) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("metric", [PPL, BITS_PER_BYTE])
def test_a_slope_is_the_derivative_by_the_mean_of_the_samples(metric: Metric):
    def at(shift: float) -> dict[str, float]:
        likelihoods = torch.tensor([[-0.1, -2.0, -0.5], [-1.3, -0.7, -1.3]], dtype=torch.float64) - shift
        found = TextLikelihoods(likelihoods, 12)
        return {m.key: m.score(found)[0] for m in of_text("")}

    rise = (at(1e-6)[metric.key] - at(-1e-6)[metric.key]) / 2e-6
    assert metric.slope(at(0.0)) == pytest.approx(rise, rel=1e-6)


def test_forecasts_follow_where_they_can():
    forecasts = {"log_ppl.a": 3.0, "q.log_likelihood": -5.0}
    assert metric_of("log_ppl.a").forecast(forecasts) == 3.0
    assert metric_of("ppl.a").forecast(forecasts) == math.exp(3.0)
    assert metric_of("bpb.a").forecast(forecasts) is None  # of how many bytes, no forecast says
    assert metric_of("ppl.b").forecast(forecasts) is None
    assert LOG_LIKELIHOOD.of("q").forecast(forecasts) == -5.0


@pytest.mark.usefixtures("own_metrics")
def test_a_metric_of_ones_own_is_measured_like_ours():
    own = replace(LOG_PPL, name="worst", samples=lambda text: -text.log_likelihoods.min(1).values)
    METRICS.add("worst", own)
    values, samples = perplexity.scores(torch.tensor([-1.0, -3.0, -2.0, -0.5]), 2, 4, "news")
    assert samples["worst.news"] == [3.0, 2.0]
    assert values["worst.news"] == 2.5
    assert own.of("news") in targets(["news"], [], [])


@pytest.mark.usefixtures("own_metrics")
def test_a_metric_of_questions_of_ones_own_is_measured_like_ours():
    """Brier's score (1950): the squared distance from the answer, here of the right choice alone."""

    def samples(questions: QuestionLikelihoods) -> torch.Tensor:
        shares = questions.log_likelihoods.softmax(1)
        return (1 - shares.gather(1, questions.answers[:, None]).flatten()) ** 2

    own = replace(LOG_LIKELIHOOD, name="brier", title="Brier score", title_by_letter="", samples=samples)
    METRICS.add("brier", replace(own, lower_is_better=True, law=1, bounds=(0.0, 1.0)))
    items = [mmlu.Item("a", "art", [9], [[1]] * 4, 1, [1] * 4, 0)]
    choices = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    values, parts = mmlu.scores(choices, items, "quiz.letter")
    assert values["quiz.letter.brier"] == pytest.approx(0.36)
    assert parts["quiz.letter.brier"] == pytest.approx([0.36])
    assert metric_of("quiz.letter.brier").label == "Brier score by letter, quiz"
    assert "quiz.letter.brier" in [m.key for m in targets([], ["quiz"], ["letter"])]


# --- nowhere else -----------------------------------------------------------------------------------

_TAKES_APART = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition"}
_TAKES_APART |= {"split", "rsplit", "replace", "find", "index", "count"}
_PIECE = re.compile(rf"(^|\.)(?:{'|'.join(NAMES)}|letter)(\.|$)")


def pieces_of_names(path: Path) -> Iterator[str]:
    """Where a module tests, cuts or puts together the name of a metric by string."""

    def strings(node: ast.AST) -> Iterator[str]:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value

    def is_piece(text: str) -> bool:
        return "." in text and " " not in text and _PIECE.search(text) is not None

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found: list[str] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _TAKES_APART:
                named = [text for argument in node.args for text in strings(argument)]
                found = [text for text in named if is_piece(text) or text in NAMES or text == "log_"]
        elif isinstance(node, ast.Compare):
            found = [text for text in strings(node) if is_piece(text) or text in NAMES]
        elif isinstance(node, ast.JoinedStr):
            found = [text for part in node.values for text in strings(part) if is_piece(text)]
        yield from (f"{path.relative_to(ROOT)}:{node.lineno}: {text!r}" for text in found)  # type: ignore[attr-defined]


def test_no_other_module_takes_a_name_apart():
    folders = [ROOT / "stages", ROOT / "tests" / "regression", ROOT / "tests" / "benchmarks"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    ours = ROOT / "stages" / "metrics"
    assert len(files) > 100
    found = [line for path in files if not path.is_relative_to(ours) for line in pieces_of_names(path)]
    assert not found, "ask stages.metrics instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "key.startswith('log_ppl.')",
        "key.startswith(('ppl.', 'bpb.'))",
        "key.endswith('.accuracy')",
        "key.removesuffix('.letter')",
        "key.rpartition('.')[2] == 'log_likelihood'",
        "'ppl.' in key",
        "f'log_ppl.{text}'",
        "f'{corpus}.letter.accuracy'",
    ],
)
def test_such_a_line_is_found(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tests.metrics.test_metrics.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(f"x = {line}\n")
    assert list(pieces_of_names(tmp_path / "module.py"))
