"""Accuracies by MMLU subject and category, with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.evaluate.results.errors import standard_error
from stages.evaluate.results.journal import Row
from stages.evaluate.text.mmlu import Item
from stages.export.results.final_table import QuestionGroup
from stages.metrics.accuracy import ACCURACY

# lm-eval's division of the 57 subjects. Hendrycks et al.'s differs in anatomy alone, which is "other" there.
CATEGORIES = {
    "STEM": "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
    "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
    "high_school_mathematics high_school_physics high_school_statistics machine_learning",
    "humanities": "formal_logic high_school_european_history high_school_us_history "
    "high_school_world_history international_law jurisprudence logical_fallacies moral_disputes "
    "moral_scenarios philosophy prehistory professional_law world_religions",
    "social sciences": "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
    "professional_psychology public_relations security_studies sociology us_foreign_policy",
    "other": "business_ethics clinical_knowledge college_medicine global_facts human_aging management "
    "marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine "
    "virology",
}
CATEGORY_OF = {subject: name for name, subjects in CATEGORIES.items() for subject in subjects.split()}


def question_groups(rows: Mapping[str, Row], items: Mapping[str, Sequence[Item]]) -> list[QuestionGroup]:
    """Categories, then subjects, of every question metric, from the samples of each contender's row.

    `items` are in the order of the samples (`Selection.items`). A subject that is not MMLU's is in
    no category.
    """
    groups = []
    for corpus, of_corpus in items.items():
        metric = ACCURACY.of(corpus).key
        samples = {contender: row.samples[metric] for contender, row in rows.items()}
        subjects = [item.subject for item in of_corpus]
        categories = [CATEGORY_OF.get(subject) for subject in subjects]
        for kind, names, labels in (
            ("category", list(CATEGORIES), categories),
            ("subject", sorted(set(subjects)), subjects),
        ):
            for name in names:
                places = [place for place, label in enumerate(labels) if label == name]
                if places:
                    groups.append(_group(metric, kind, name, places, samples))
    return groups


def _group(
    metric: str, kind: str, name: str, places: Sequence[int], samples: Mapping[str, Sequence[float]]
) -> QuestionGroup:
    own = {contender: [values[place] for place in places] for contender, values in samples.items()}
    return QuestionGroup(
        metric,
        kind,
        name,
        len(places),
        {contender: sum(values) / len(values) for contender, values in own.items()},
        {contender: standard_error(values) for contender, values in own.items()},
    )
