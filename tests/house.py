"""The house as its imports draw it: which room imports which, as the picture in stages/README.md.

    python -m tests.house             # says whether the picture is what the imports say
    python -m tests.house --update    # draws it anew

What the files import is read from their text; nothing is run.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAGES = ROOT / "stages"
README = STAGES / "README.md"
ROOMS = ["sample", "evaluate", "build_dataset", "train_predictor", "search", "export"]
"""In the order in which data passes."""
HALL = {"config", "families", "metrics", "tracking"}
"""Folders that every room may import."""
BEGIN, END = "<!-- drawn by python -m tests.house --update -->", "<!-- drawn up to here -->"

Graph = Mapping[str, set[str]]
"""What each part of the house imports. A part is the hall, or the files of a room or of a sub-room."""


def imported(path: Path, at_the_top: bool = False) -> set[Path]:
    """The files of this project that a file imports itself, within its functions or only at its top."""
    found: set[Path] = set()

    def add(module: str) -> bool:
        base = ROOT / module.replace(".", "/")
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                found.add(candidate)
                return True
        return False

    tree = ast.parse(path.read_text())
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages"):
            add(node.module)
            for alias in node.names:
                add(f"{node.module}.{alias.name}")
    if path.name == "__main__.py":
        for place in re.findall(r'"(stages[.\w]+):\w+"', path.read_text()):  # a door names its body
            add(place)
    return {p for p in found if p.is_relative_to(STAGES)}


def part_of(path: Path) -> str:
    """The part of the house that a file of stages/ is in: "hall", "sample", "evaluate/text"."""
    folders = path.relative_to(STAGES).parts[:-1]
    return "/".join(folders[:2]) if folders and folders[0] not in HALL else "hall"


def house() -> Graph:
    """What each part imports of the others."""
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(STAGES.rglob("*.py")):
        graph[part_of(path)] |= {part_of(other) for other in imported(path)} - {part_of(path)}
    return dict(graph)


def reduced(graph: Graph) -> Graph:
    """The transitive reduction: without an import that follows from a chain of others.

    Imports within a circle of parts are all kept: there every one follows from others.
    """
    reach = {part: _reached(graph, part) for part in graph}
    return {
        a: {
            b
            for b in graph[a]
            if not any(b in reach[c] and a not in reach[c] and c not in reach[b] for c in reach[a] - {a, b})
        }
        for a in graph
    }


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def drawn(graph: Graph) -> str:
    """A Mermaid flowchart; an arrow goes from a part to what it imports."""
    return "\n".join(["```mermaid", "flowchart TD", *_parts(graph), *_arrows(reduced(graph)), "```"])


def _parts(graph: Graph) -> Iterator[str]:
    yield f'  hall["hall: stages/*.py, {", ".join(sorted(HALL))}"]'
    rooms = [*ROOMS, *sorted({part.split("/")[0] for part in graph} - {*ROOMS, "hall"})]
    for room in rooms:
        inside = sorted(part for part in graph if part.startswith(f"{room}/"))
        if not inside:
            yield f"  {room}"
            continue
        yield f"  subgraph {room}_room [{room}]"
        yield f'    {room}["{room}/*.py"]'
        yield from (f"    {_id(part)}[{part.split('/')[1]}]" for part in inside)
        yield "  end"


def _arrows(graph: Graph) -> Iterator[str]:
    for a in sorted(graph):
        for b in sorted(graph[a]):
            if a not in graph[b]:
                yield f"  {_id(a)} --> {_id(b)}"
            elif a < b:
                yield f"  {_id(a)} <--> {_id(b)}"


def _id(part: str) -> str:
    return part.replace("/", "_")


def picture(page: str) -> str:
    """The picture on the page.

    Raises:
        ValueError: the page has not one place for it.
    """
    _, begin, rest = page.partition(BEGIN)
    content, end, _ = rest.partition(END)
    if not begin or not end or BEGIN in rest:
        raise ValueError(f"{README} has no place for the picture; expected the lines {BEGIN!r} and {END!r}")
    return content.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="draw the picture anew")
    page, now = README.read_text(encoding="utf-8"), drawn(house())
    before = picture(page)
    if parser.parse_args().update:
        README.write_text(page.replace(before, now) if before else page.replace(BEGIN, f"{BEGIN}\n{now}"))
    elif before != now:
        sys.exit("the picture is not what the imports say; run `python -m tests.house --update`")


if __name__ == "__main__":
    main()
