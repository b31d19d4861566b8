"""Corpora in other encodings, line ends and formats, and question files with odd rows."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from tests.faults.inputs import Harm
from tests.faults.world import World, paragraphs, questions

Bytes = Callable[[str], bytes]

TEXTS: Mapping[str, Bytes] = {
    "byte order mark": lambda t: b"\xef\xbb\xbf" + t.encode(),
    "Windows line ends": lambda t: t.replace("\n", "\r\n").encode(),
    "old Mac line ends": lambda t: t.replace("\n", "\r").encode(),
    "UTF-16": lambda t: t.encode("utf-16"),
    "UTF-16 without a mark": lambda t: t.encode("utf-16-le"),
    "UTF-32": lambda t: t.encode("utf-32"),
    "Latin-1": lambda t: t.replace("e", "é").encode("latin-1"),
    "a byte that is no UTF-8": lambda t: t.encode()[:500] + b"\xff" + t.encode()[500:],
    "a NUL": lambda t: t.encode()[:500] + b"\0" + t.encode()[500:],
    "NULs at the end": lambda t: t.encode() + bytes(4096),
    "spaces at the ends of lines": lambda t: t.replace("\n", "  \n").encode(),
    "many blank lines": lambda t: t.replace("\n\n", "\n\n\n\n\n").encode(),
    "blank at the ends": lambda t: ("\n\n \n" + t + "\n\n\n").encode(),
    "form feeds": lambda t: t.replace("\n\n", "\f").encode(),
    "one line": lambda t: t.replace("\n\n", " ").encode(),
    "empty": lambda t: b"",
    "blanks alone": lambda t: b" \n\n \n",
    "one document": lambda t: t.split("\n\n")[0].encode(),
    "compressed": lambda t: b"\x1f\x8b\x08\x00" + t.encode(),
    "a document twice": lambda t: (t + "\n\n" + t.split("\n\n")[0]).encode(),
    "all twice": lambda t: (t + "\n\n" + t).encode(),
}


def _text(name: str, change: Bytes) -> Harm:
    def apply(world: World, rng: random.Random) -> str:
        path = world.folder / "prose.txt"
        path.write_bytes(change(path.read_text()))
        return name

    return Harm("text corpora", apply, ("prose", "corpora"))


def _rows_of_text(world: World, rng: random.Random) -> str:
    """Rows in one of the formats, some of which are null, blank, numbers, lists or of another column."""
    rows: list[dict[str, Any]] = [{"text": paragraph} for paragraph in paragraphs(60, 3)]
    odd = rng.choice([None, "", "  \n", 3, 2.5, True, ["a"], {"a": 1}, float("nan"), "\ufeff", "\r\n"])
    rows.insert(rng.randrange(len(rows)), {"text": odd})
    forms = ["jsonl", "JSONL", "parquet"]  # of CSV every cell is a text
    form = rng.choice([*forms, "csv"] if odd is None or isinstance(odd, str) else forms)
    path = world.folder / f"rows.{form}"
    try:
        _write(path, rows, form.lower())
    except Exception:  # a format that cannot hold it
        _write(path, [row for row in rows if isinstance(row["text"], str)], form.lower())
    params = world.params
    params["corpora"]["texts"]["prose"] = path.name
    world.write_params(params)
    return f"{form} with a row {odd!r}"


def _write(path: Any, rows: list[dict[str, Any]], form: str) -> None:
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)


ANSWERS: Mapping[str, Callable[[int], Any]] = {
    "2.0": lambda a: float(a),
    "text of a whole float": lambda a: f"{a}.0",
    "text of a number": str,
    "letter": lambda a: "ABCD"[a],
    "small letter with a blank": lambda a: "abcd"[a] + " ",
    "(B)": lambda a: f"({'ABCD'[a]})",
    "B.": lambda a: f"{'ABCD'[a]}.",
    "from one": lambda a: a + 1,
    "negative": lambda a: -1 - a,
    "null": lambda a: None,
    "half": lambda a: a + 0.5,
    "true": lambda a: a > 1,
    "list": lambda a: [a],
    "beyond": lambda a: a + 10,
    "word": lambda a: "north",
}
CHOICES: Mapping[str, Callable[[list[str]], Any]] = {
    "numbers": lambda c: [len(x) + i for i, x in enumerate(c)],
    "null": lambda c: [*c[:3], None],
    "empty": lambda c: [*c[:3], ""],
    "three": lambda c: c[:3],
    "five": lambda c: [*c, "nowhere"],
    "ten": lambda c: [*c, *"efghij"],
    "one": lambda c: c[:1],
    "none": lambda c: [],
    "equal": lambda c: [c[0]] * 4,
    "a text": lambda c: " ".join(c),
    "numbered": lambda c: dict(enumerate(c)),
}


def _questions(world: World, rng: random.Random) -> str:
    rows = questions(24)
    field = rng.choice(["answer", "choices"])
    changes: Mapping[str, Callable[[Any], Any]] = ANSWERS if field == "answer" else CHOICES
    name = rng.choice(sorted(changes))
    some = rng.random() < 0.4  # one row alone
    for row in rows[7:8] if some else rows:
        row[field] = changes[name](row[field])
    form = rng.choice(["jsonl", "csv", "parquet"])
    path = world.folder / f"questions.{form}"
    if form == "csv":
        path.write_text(_as_csv(rows))
    else:
        try:
            _write(path, rows, form)
        except Exception:  # parquet holds one type a column
            path = path.with_suffix(".jsonl")
            _write(path, rows, "jsonl")
    params = world.params
    params["corpora"]["questions"]["quiz"] = path.name
    world.write_params(params)
    return f"{path.suffix}: {field} {name}{' in one row' if some else ''}"


def _as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    width = max(len(row["choices"]) if isinstance(row["choices"], list) else 1 for row in rows)
    writer.writerow(["question", *(f"choice{i}" for i in range(width)), "answer"])
    for row in rows:
        choices = row["choices"] if isinstance(row["choices"], list) else [row["choices"]]
        writer.writerow([row["question"], *choices, *[""] * (width - len(choices)), row["answer"]])
    return out.getvalue()


HARMS = [
    *(_text(name, change) for name, change in TEXTS.items()),
    *[
        Harm("rows of text", _rows_of_text, ("prose", "rows.", "corpora")),
        Harm("questions", _questions, ("quiz", "questions.", "corpora")),
    ] * 15,
]  # fmt: skip
