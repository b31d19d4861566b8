"""The comment on a pull request, from the files that the workflow gathered.

    python -m tests.regression.comment FOLDER > FOLDER/comment.md

FOLDER may hold regression.md (`python -m tests.regression --markdown`), metrics.md and params.md (`dvc
metrics diff --md`, `dvc params diff --md`) and pictures/*.png, those of the base as base-*.png. Links to
pictures begin with `PICTURES`, which the workflow replaces once it knows where it has put them.
"""

from __future__ import annotations

import sys
from pathlib import Path

MARKER = "<!-- prunecast-regression -->"
"""The first line, by which the workflow finds the comment that it wrote before."""
PICTURES = "PICTURES-OF-THIS-RUN"
LIMIT = 60_000
"""Characters; GitHub refuses a comment of more than 65,536."""


def body(folder: Path) -> str:
    """The comment: the guard's table, then what DVC says, then the pictures; shortened to `LIMIT`."""
    guard = _read(folder / "regression.md") or "The guard did not come to a result: see the run's log."
    parts = [MARKER, "## Regression guard", guard]
    parts += _details("dvc metrics diff", _read(folder / "metrics.md"), "No metric of the pipeline changed.")
    parts += _details("dvc params diff", _read(folder / "params.md"), "No parameter changed.")
    parts += _pictures(folder / "pictures")
    whole = "\n\n".join(parts)
    if len(whole) > LIMIT:
        whole = f"{_at_line(whole, LIMIT)}\n\n… shortened; the run's artifact has all of it."
    return f"{whole}\n"


def _read(path: Path) -> str | None:
    """The file's text; None if it is missing: that step failed."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _details(title: str, text: str | None, empty: str) -> list[str]:
    if text is None:
        return [f"`{title}` could not be made: see the run's log."]
    return (
        [f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"] if text else [f"`{title}`: {empty}"]
    )


def _pictures(folder: Path) -> list[str]:
    """A row of the table a picture: the base's and the one of this change."""
    names = sorted(path.name for path in folder.glob("*.png") if not path.name.startswith("base-"))
    if not names:
        return ["No pictures: the pipeline did not come to its end."]
    lines = ["| base | this change |", "| --- | --- |"]
    for name in names:
        old = f"![{name}]({PICTURES}/base-{name})" if (folder / f"base-{name}").is_file() else "not there"
        lines.append(f"| {old} | ![{name}]({PICTURES}/{name}) |")
    return ["\n".join(lines)]


def _at_line(text: str, limit: int) -> str:
    """The whole lines within the limit, and the tag that they may have left open."""
    kept = text[:limit].rsplit("\n", 1)[0]
    return f"{kept}\n\n</details>" if kept.count("<details>") > kept.count("</details>") else kept


if __name__ == "__main__":
    sys.stdout.write(body(Path(sys.argv[1])))
