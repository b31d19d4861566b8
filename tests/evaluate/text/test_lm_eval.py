"""MMLU against lm-eval itself: a tiny model, questions of two subjects, both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.evaluate.text import mmlu
from stages.evaluate.text.corpora import Corpus
from stages.evaluate.text.selection import select
from stages.metrics.metric import QuestionFormat, format_of
from tests import lm_eval_reference, tiny
from tests.conftest import TinyFolder
from tests.evaluate.measure.test_evaluator import MEASUREMENT
from tests.evaluate.text.test_mmlu import make_questions, pool_of

pytest.importorskip("lm_eval.evaluator", reason="the extra lm-eval is not installed")


@pytest.mark.parametrize("style", ["likelihood", "letter"])
def test_log_likelihoods_and_accuracy_are_those_of_lm_eval(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: QuestionFormat
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tiny_folder("llama", max_position_embeddings=4096)
    questions, pool = make_questions(24, seed=11), pool_of()
    parts = {"calibration": tuple(pool), "selection": (), "report": tuple(questions)}
    corpus = Corpus("quiz", "made up", parts, 40, 40, "")  # type: ignore[arg-type]
    every = {"questions": None, "question_tokens": None, "question_formats": [style]}
    measurement = MEASUREMENT.model_copy(update=every)
    chosen = select({}, {"quiz": corpus}, "report", tiny.byte_tokenizer(), measurement, 4096)
    ((name, items),) = chosen.items.items()
    network = tiny.network_of(folder)
    with torch.inference_mode():
        batches = mmlu.batches(items, 1024, shared=format_of(name) == "letter")
        logs = torch.cat([network.log_likelihoods(network.shape.dense(), batch) for batch in batches])
    theirs = lm_eval_reference.answers(
        tiny.reference(folder), tiny.byte_tokenizer(), style, questions, pool, tmp_path
    )
    assert theirs.log_likelihoods.keys() == {question.id for question in questions}
    expected = torch.tensor([theirs.log_likelihoods[item.id] for item in items], dtype=torch.float64)
    torch.testing.assert_close(mmlu.choice_log_likelihoods(logs, items), expected, rtol=0, atol=1e-3)
    metrics, samples = mmlu.scores(logs, items)
    assert samples["accuracy"] == [theirs.accuracy[item.id] for item in items]
    assert 0 < metrics["accuracy"] < 1
    if style == "likelihood":
        normalised = [theirs.normalised[item.id] for item in items]
        assert samples["accuracy_norm"] == normalised != samples["accuracy"]
