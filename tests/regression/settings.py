"""What the guard runs and what it tolerates: settings.yaml, typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stages.config.fields import Positive, Section
from stages.config.params import Params, load_params
from stages.files import InputError, write_text


class Tolerance(Section):
    """How much worse each kind of figure may be than its baseline.

    `ppl_percent` of one text, `all_ppl_percent` of the geometric mean of all texts.
    """

    ppl_percent: Positive
    all_ppl_percent: Positive
    accuracy_points: Positive
    log_likelihood_nats: Positive


class Tolerances(Section):
    """Of architectures that are given, of the one that the search found, and of the exported folder."""

    fixed: Tolerance
    found: Tolerance
    export_nats: Positive


class Settings(Section):
    """The whole of settings.yaml."""

    standard_errors: Positive
    tolerance: Tolerances
    params: dict[str, dict[str, Any]]


def load(path: Path) -> Settings:
    """Read and check the guard's settings.

    Raises:
        InputError: the file is missing or not YAML, or a key or value is wrong.
    """
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; restore it with `git checkout`") from None
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"{path} is not what the guard reads: {error}") from error


def reduced(full: Path, changes: Mapping[str, Mapping[str, Any]], written: Path) -> Params:
    """The params of `full` with `changes` laid over each section, written to a file and checked.

    Raises:
        InputError: a section, key or value is wrong.
    """
    content: dict[str, Any] = yaml.safe_load(full.read_text(encoding="utf-8"))
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    write_text(written, yaml.safe_dump(content, sort_keys=False))
    return load_params(written)
