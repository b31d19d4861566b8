"""Accuracies by subject and category: by hand, and the categories against lm-eval's."""

from __future__ import annotations

import math
import statistics
from importlib import metadata

import pytest
import yaml

from stages.evaluate.results.journal import Row
from stages.evaluate.text.mmlu import Item
from stages.export import final_table
from stages.export.question_groups import CATEGORIES, CATEGORY_OF, question_groups
from stages.export.results.final_table import QuestionGroup
from tests.small import SMALL

SUBJECTS = ["virology", "anatomy", "anatomy", "astronomy", "chess", "anatomy"]


def row(**samples: list[float]) -> Row:
    named = {name.replace("__", "."): values for name, values in samples.items()}
    metrics = {name: statistics.fmean(values) for name, values in named.items()}
    for name in [name for name in metrics if name.startswith("log_ppl.")]:
        text = name.removeprefix("log_ppl.")
        metrics |= {f"ppl.{text}": math.exp(metrics[name]), f"bpb.{text}": 0.4 * metrics[name]}
    return Row("key", "context", SMALL.dense(), "dense", 0.0, metrics, named, 1.0, "now")


def groups() -> list[QuestionGroup]:
    items = [Item(f"q{i}", subject, [1], [[2]] * 4, 0, [1] * 4, 0) for i, subject in enumerate(SUBJECTS)]
    rows = {
        "dense": row(quiz__accuracy=[1, 1, 0, 1, 0, 1]),
        "winner": row(quiz__accuracy=[0, 1, 0, 0, 1, 0]),
    }
    return question_groups(rows, {"quiz": items})


def test_groups_by_hand() -> None:
    found = {(group.kind, group.name): group for group in groups()}
    assert [key for key in found if key[0] == "category"] == [("category", "STEM"), ("category", "other")]
    assert [name for kind, name in found if kind == "subject"] == [
        "anatomy",
        "astronomy",
        "chess",
        "virology",
    ]
    stem = found["category", "STEM"]
    assert (stem.metric, stem.questions) == ("quiz.accuracy", 4)
    assert stem.accuracy == {"dense": 0.75, "winner": 0.25}
    assert stem.standard_errors["dense"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    anatomy = found["subject", "anatomy"]
    assert anatomy.questions == 3
    assert anatomy.accuracy == pytest.approx({"dense": 2 / 3, "winner": 1 / 3})
    assert math.isnan(found["subject", "chess"].standard_errors["winner"])  # of one question


def test_categories_are_those_of_lm_eval() -> None:
    assert len(CATEGORY_OF) == 57
    assert sum(len(subjects.split()) for subjects in CATEGORIES.values()) == 57
    try:
        files = metadata.files("lm-eval") or []
    except metadata.PackageNotFoundError:
        pytest.skip("lm-eval is not installed")
    tasks = [f for f in files if f.parent.as_posix().endswith("tasks/mmlu/default")]
    found = {}
    for file in tasks:
        if file.name.startswith("mmlu_"):
            task = yaml.safe_load(file.read_text())
            found[task["dataset_name"]] = task["tag"]
    tags = {name: f"mmlu_{name.lower().replace(' ', '_')}_tasks" for name in CATEGORIES}
    assert found == {subject: tags[category] for subject, category in CATEGORY_OF.items()}


def test_errors_of_bits_per_byte_are_those_of_log_perplexity_scaled() -> None:
    one, other = row(log_ppl__news=[3.0, 3.4, 3.1]), row(log_ppl__news=[3.3, 3.5, 3.7])
    contender = final_table.contender("dense", one, SMALL)
    assert contender.metrics.keys() == {"ppl.news", "bpb.news"}
    error = statistics.stdev([0.4 * 3.0, 0.4 * 3.4, 0.4 * 3.1]) / math.sqrt(3)
    assert contender.standard_errors["bpb.news"] == pytest.approx(error)
    paired = final_table.paired_errors({"winner": one, "uniform": other, "simple": other})["uniform"]
    spread = statistics.stdev([-0.3, -0.1, -0.6]) / math.sqrt(3)
    assert paired["bpb.news"] == pytest.approx(100 * spread / 3.5)
