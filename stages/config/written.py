"""params.yaml as a command writes it: a few keys anew, comments and all other values as they were."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from stages.config import profiles
from stages.config.params import load_params
from stages.files import InputError, atomically, write_text
from stages.metrics.perplexity import LOG_PPL


@contextlib.contextmanager
def put_back(folder: Path) -> Iterator[None]:
    """Put the params of a folder back where what is done with them is refused or stopped, and say so."""
    before = {path: path.read_bytes() for path in folder.glob("params*.yaml")}
    try:
        yield
    except BaseException:
        now = {path: path.read_bytes() for path in folder.glob("params*.yaml")}
        if now != before:
            for path, content in before.items():
                with atomically(path) as temporary:
                    temporary.write_bytes(content)
            for path in now.keys() - before.keys():
                path.unlink()
            print("params.yaml is as it was before", flush=True)
        raise


def asked_for(
    path: Path, model: str, ratio: float | None, texts: Sequence[str], profile: str | None
) -> list[str]:
    """Write what `prunecast prune` asks for into params.yaml; what was written, a line each.

    Without texts the profile's corpora stay. With them they are all there is, each weighing alike.

    Raises:
        InputError: there is no such profile, text or folder to run in; or what would be written is refused.
            Nothing is written then.
    """
    if not path.with_name("dvc.yaml").is_file():
        raise InputError(
            f"there is no dvc.yaml in {path.absolute().parent}: run it in a clone of Prunecast, where the "
            "pipeline lies"
        )
    named = _named(texts)
    profile_path = profiles.path_of(profile, path.parent) if profile is not None else path
    load_params(profile_path)  # what is wrong with it is told as everywhere
    changes: dict[tuple[str, ...], Any] = {("model", "source"): model}
    if ratio is not None:
        changes["budget", "overall_ratio"] = ratio
    if named:
        changes["corpora", "texts"] = named
        changes["corpora", "questions"] = {}
        changes["search", "objective"] = {LOG_PPL.of(name).key: 1.0 for name in named}
    before = profile_path.read_text(encoding="utf-8")
    after = changed(before, changes)
    with tempfile.TemporaryDirectory() as aside:
        tried = Path(aside) / path.name
        write_text(tried, after)
        load_params(tried)
    said = []
    if profile is not None and profiles.switch(profile, path.parent):
        said.append(f"{path.name} is the profile {profile}")
    if after != before:
        write_text(path, after)
    return said + [f"{path.name}: {'.'.join(key)} is {value}" for key, value in changes.items()]


def _named(texts: Sequence[str]) -> dict[str, str]:
    """The texts by names, which metrics are then called by: of a file's, a corpus's or a dataset's name.

    Raises:
        InputError: a file is not there.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, _, rest = text.partition(":")
        if kind == "hub":
            called = rest.partition(":")[0].partition("@")[0]
        elif kind in ("package", "lines"):
            called = rest
        else:
            called, kind = text, "file"
        if kind in ("file", "lines") and not Path(called).exists():
            raise InputError(f"--text {text}: there is no such file")
        name = re.sub(r"[^a-z0-9]+", "-", Path(called).stem.lower()).strip("-") or "text"
        alike = sum(other == name or other.startswith(f"{name}-") for other in found)
        found[f"{name}-{alike + 1}" if alike else name] = text
    return found


class _Words(RoundTripRepresenter):
    """Writes null as a word."""


_Words.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def changed(text: str, changes: Mapping[tuple[str, ...], Any]) -> str:
    """YAML with these values anew, by their keys from the top."""
    yaml = YAML()
    yaml.Representer = _Words
    yaml.preserve_quotes = True
    yaml.width = 10_000
    document = yaml.load(text)
    for key, value in changes.items():
        inside = document
        for name in key[:-1]:
            inside = inside[name]
        inside[key[-1]] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
