"""params.yaml as a command writes it: a few keys anew, everything else, comments included, as it was."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from stages.config import profiles
from stages.config.params import load_params
from stages.files import InputError, write_text


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
    said = []
    if profile is not None and profiles.switch(profile, path.parent):
        said.append(f"{path.name} is the profile {profile}")
    changes: dict[tuple[str, ...], Any] = {("model", "source"): model}
    if ratio is not None:
        changes["budget", "overall_ratio"] = ratio
    if named:
        changes["corpora", "texts"] = named
        changes["corpora", "questions"] = {}
        changes["search", "objective"] = {f"log_ppl.{name}": 1.0 for name in named}
    before = path.read_text(encoding="utf-8")
    after = changed(before, changes)
    if after != before:
        write_text(path, after)
        try:
            load_params(path)
        except InputError:
            write_text(path, before)
            raise
    return said + [f"{path.name}: {'.'.join(key)} is {value}" for key, value in changes.items()]


def _named(texts: Sequence[str]) -> dict[str, str]:
    """The texts by names of their files, which metrics are then called by.

    Raises:
        InputError: a file is not there, or two have one name.
    """
    found: dict[str, str] = {}
    for text in texts:
        source = ":" in text  # hub:…, package:…, lines:…
        if not source and not Path(text).exists():
            raise InputError(f"--text {text}: there is no such file")
        name = re.sub(r"[^a-z0-9]+", "-", Path(text.rpartition(":")[2]).stem.lower()).strip("-") or "text"
        if name in found:
            raise InputError(
                f"--text {text} and {found[name]} would both be called {name!r}; rename one of them"
            )
        found[name] = text
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
