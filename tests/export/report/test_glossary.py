"""Each private word of the report leads to what it means."""

from __future__ import annotations

import re

import pytest

from stages.export.report import glossary
from stages.export.report.data import ReportData
from stages.export.report.page import build_report


def test_every_link_leads_to_an_entry_and_every_entry_is_led_to(report_data: ReportData) -> None:
    page = build_report(report_data)
    led = set(re.findall(r'class="term" href="#([^"]+)"', page))
    there = {glossary.anchor(term) for term in glossary.TERMS}
    assert led <= there
    assert all(f'<div id="{name}">' in page for name in there)
    assert {"term-overall-ratio", "term-winner", "term-uniform", "term-pair", "term-forecast"} <= led


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<p>no word of ours</p>", "<p>no word of ours</p>"),
        ("<h2>The winner</h2><code>winner</code>", "<h2>The winner</h2><code>winner</code>"),
        ('<a href="x">a site</a>', '<a href="x">a site</a>'),
        ('<img alt="the winner">', '<img alt="the winner">'),
    ],
)
def test_what_is_left_alone(given: str, expected: str) -> None:
    assert glossary.linked(given) == expected


def test_the_first_use_in_a_section_is_linked_and_the_longest_word_wins() -> None:
    found = glossary.linked("<section><p>Overall ratio, ratios; the overall ratio</p></section>")
    assert found.count('class="term"') == 2
    assert 'href="#term-overall-ratio"' in found
    assert re.search(r'href="#term-ratio" title="[^"]+">ratios</a>', found)
    again = glossary.linked("<section>a site</section><section>a site</section>")
    assert again.count('class="term"') == 2
