"""stages/README.md: its picture is what the imports say, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import house

PAGES = sorted(
    page
    for pattern in ("*.md", "stages/*.md", "data/*.md", "tests/**/*.md")
    for page in house.ROOT.glob(pattern)
)


def test_the_picture_is_what_the_imports_say() -> None:
    shown = house.picture(house.README.read_text(encoding="utf-8"))
    assert shown == house.drawn(house.house()), "run `python -m tests.house --update`"


def test_an_import_that_follows_from_others_is_not_drawn() -> None:
    chain = {"c": {"b", "a", "d"}, "b": {"a", "d"}, "a": {"d"}, "d": {"a"}}
    assert house.reduced(chain) == {"c": {"b"}, "b": {"a", "d"}, "a": {"d"}, "d": {"a"}}


def test_parts() -> None:
    parts = {
        "registry.py": "hall",
        "metrics/metric.py": "hall",
        "sample/space.py": "sample",
        "evaluate/workbench.py": "evaluate",
        "evaluate/calibrate/importance/taylor.py": "evaluate/calibrate",
    }
    assert {path: house.part_of(house.STAGES / path) for path in parts} == parts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(house.ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    """Files are there, and headings of the pages that are linked with one."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, target


def test_the_code_of_the_recipes_is_the_code_that_tests_run() -> None:
    files = [file.read_text(encoding="utf-8") for file in (house.ROOT / "tests" / "recipes").glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", house.README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert any(block in file for file in files), block


def test_the_readme_is_short() -> None:
    assert len((house.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_what_the_house_names_in_code_is_there() -> None:
    """Files and folders of the repository that a page names by their whole path."""
    for page in PAGES:
        for name in re.findall(r"`((?:stages|tests)/[\w/.-]+)`", page.read_text(encoding="utf-8")):
            assert (house.ROOT / name).exists(), f"{page.name} names {name}"


def test_no_two_rooms_need_each_other() -> None:
    assert "<-->" not in house.drawn(house.house())
