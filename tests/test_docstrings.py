"""Docstrings: their examples are true, and their first sentences stand by themselves."""

from __future__ import annotations

import ast
import doctest
import importlib
import re

import pytest

from tests.house import STAGES

EXAMPLES = [
    path.relative_to(STAGES.parent).with_suffix("").as_posix().replace("/", ".")
    for path in sorted(STAGES.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
FRAGMENT = re.compile(r"(Of|With|Without|As|At|By|For|From|In|On|When|Those|The same)\b|[a-z]+ (?![=(])")
"""What begins a docstring that reads on from a name: "Of all layers", "With three digits", "makes it"."""


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_docstrings_stand_by_themselves() -> None:
    """Those of modules, classes, functions, constants and fields."""
    found = [
        f"{path.relative_to(STAGES)}:{node.lineno}: {node.value.value}"
        for path in sorted(STAGES.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and FRAGMENT.match(node.value.value)
    ]
    assert not found, "\n".join(found)
