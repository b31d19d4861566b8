"""What an evaluation reads: estimates against known splits, and against a count."""

from __future__ import annotations

from typing import Any

import pytest

from stages.config.params import Corpora, Measurement, PartSources
from stages.files import InputError
from stages.plan.token_counts import at_hand, estimated
from tests.config.test_profiles import PAPER
from tests.small import COMMITTED

WHOLE = PAPER.evaluate.measurement
STANDARD = WHOLE.model_copy(update={"protocol": "standard"})


def corpora(source: str, questions: dict[str, Any] | None = None) -> Corpora:
    parts = PartSources(calibration=source, selection=source, report=source)
    return Corpora(division=COMMITTED.corpora.division, texts={"a": parts}, questions=questions or {})


def windows(source: str, measurement: Measurement = STANDARD) -> int:
    return estimated(corpora(source), "report", measurement, 65536).windows


def test_wikitext_has_about_the_windows_that_papers_name():
    """341,469 tokens of Llama's are 166 windows of 2,048."""
    assert windows("hub:Salesforce/wikitext:wikitext-2-raw-v1:test") == pytest.approx(166, rel=0.05)


def test_a_slice_of_a_split_is_a_share_of_it():
    ptb = "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::train"
    whole = windows(ptb, WHOLE)
    assert windows(f"{ptb}[:50%]", WHOLE) == pytest.approx(whole / 2, abs=1)
    assert windows(f"{ptb}[-4207:]", WHOLE) == pytest.approx(whole / 10, abs=1)
    assert windows(f"{ptb}[10000:20000]", WHOLE) == pytest.approx(whole * 10_000 / 42_068, abs=1)


def test_the_paper_asks_all_of_mmlu_by_letter():
    pair = estimated(PAPER.corpora, "selection", WHOLE, 65536)
    final = estimated(PAPER.corpora, "report", WHOLE, 65536)
    assert (pair.questions, final.questions) == (1_531, 14_042)
    assert not pair.exact
    assert pair.tokens == pair.windows * 128 + 1_531 * 300


def test_what_is_not_known_is_not_guessed():
    with pytest.raises(
        InputError, match=r"corpora.texts.a, part report: all of 'hub:me/own:x:test' .*--count"
    ):
        windows("hub:me/own:x:test")
    local = COMMITTED.corpora
    with pytest.raises(InputError, match=r"corpora.texts.wikipedia, part selection: .*--count"):
        estimated(local, "selection", WHOLE, 65536)
    assert (
        windows("hub:me/own:x:test", COMMITTED.evaluate.measurement) == COMMITTED.evaluate.measurement.windows
    )


def test_the_hub_is_not_at_hand():
    assert at_hand(COMMITTED)
    assert not at_hand(PAPER)
    assert not at_hand(COMMITTED.model_copy(update={"model": PAPER.model}))
    assert not at_hand(COMMITTED.model_copy(update={"corpora": PAPER.corpora}))
