"""YAML that people write: what DVC reads is what we read, and what neither can mean is one error."""

from __future__ import annotations

import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.document import DEEPEST, read_yaml
from stages.files import InputError


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


SCALARS = {
    "5e-3": 0.005,
    "5E3": 5000.0,
    "3.0e-2": 0.03,
    "1_000": 1000,
    "010": 10,  # YAML 1.1 takes it for octal
    "0o10": 8,
    "0x1F": 31,
    "1:30": "1:30",  # and this for 90
    "yes": "yes",  # and these for true and false
    "no": "no",
    "on": "on",
    "off": "off",
    "y": "y",
    "true": True,
    "~": None,
    "null": None,
    "2026-01-01": datetime.date(2026, 1, 1),
    ".inf": float("inf"),
    "'5e-3'": "5e-3",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_are_those_of_yaml_1_2_and_of_dvc(tmp_path: Path, text: str, value: Any):
    found = read_yaml(written(tmp_path, f"key: {text}"))["key"]
    assert (type(found), found) == (type(value), value)
    assert parse_yaml(f"key: {text}", "params.yaml")["key"] == value


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("0123456789eE+-._xob:ynNYofOF~aul"), min_size=1, max_size=8))
def test_whatever_stands_there_dvc_reads_the_same(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = written(tmp_path_factory.mktemp("yaml"), f"key: {text}")
    try:
        theirs = repr(parse_yaml(f"key: {text}", "params.yaml"))
    except Exception:
        with pytest.raises(InputError, match="is not valid YAML"):
            read_yaml(path)
    else:
        assert repr(read_yaml(path)) == theirs


@pytest.mark.parametrize(
    "text",
    ["key: 1\nother: 2\nkey: 3", "a:\n  b:\n    key: 1\n    key: 1", "{a: [{key: 1, key: 2}]}"],
    ids=["at the top", "deep", "in a list"],
)
def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path, text: str):
    line = 1 + text[: text.rindex("key")].count("\n")
    with pytest.raises(InputError, match=rf'line {line}, column \d+: .*found duplicate key "key"'):
        read_yaml(written(tmp_path, text))


def _bomb() -> str:
    """Ten times ten times ten …: ten lines of text, ten billion values."""
    names = "abcdefghij"
    rest = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(names)]
    return "\n".join(["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *rest])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("key: é".encode("latin-1"), "not in UTF-8.*line 1 has the byte 0xe9"),
        ("key: 1".encode("utf-16"), "not in UTF-8.*UTF-16"),
        ("key: 1".encode("utf-16-be"), "not valid YAML"),
        (b"key: \x00", "not valid YAML"),
        ('key: "\\0"', "a character that no text has"),
        ('key: "\\ud800"', "a character that no text has"),
        ("key:\n\t- 1", "line 2, column 1.*'\\\\t' that cannot start any token"),
        ("key: 1\n---\nkey: 2", "line 2, column 1: expected a single document"),
        ("key: !!python/object/apply:os.system [ls]", "line 1, column 6.*python/object"),
        ("key: !ours 1", "constructor for the tag '!ours'"),
        ("key: !!int one", "not valid YAML"),
        ("key: !!bool perhaps", "not valid YAML"),
        ("key: 2026-13-45", "not valid YAML: month"),
        ("key: " + "9" * 5000, "not valid YAML"),
        ("key: *nothing", "undefined alias"),
        ("<<: 3", "merging"),
        ("key: [1, 2", "line 1, column"),
        ("[" * 3000, f"more than {DEEPEST} deep"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), f"more than {DEEPEST} deep"),
        ("key: &key [*key]", f"more than {DEEPEST} deep"),
        (_bomb(), "values, aliases written out"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_document_of_plain_values_is_one_error(tmp_path: Path, content: str | bytes, says: str):
    with pytest.raises(InputError, match=f"params.yaml .*{says}"):
        read_yaml(written(tmp_path, content))


def test_aliases_a_mark_of_byte_order_and_an_empty_file_are_no_error(tmp_path: Path):
    text = "one: &one {a: 1, b: [2]}\ntwo: *one\nthree: {<<: *one, b: 3}"
    assert read_yaml(written(tmp_path, "\ufeff" + text)) == {
        "one": {"a": 1, "b": [2]},
        "two": {"a": 1, "b": [2]},
        "three": {"a": 1, "b": 3},
    }
    assert read_yaml(written(tmp_path, "")) is None


@pytest.mark.parametrize("name", ["", "nowhere.yaml", "x" * 5000, "a\0b"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"is not there|cannot be read"):
        read_yaml(tmp_path / name)
