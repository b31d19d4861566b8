"""What MLflow stores: where, the values it takes, and what is said of a store that does not work."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tqdm import tqdm

SQLITE = "sqlite:///"
PARAM_LENGTH = 6000
"""Characters of a parameter's value."""

QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
"""Settings of every request: mlflow's own patience with a server that is not there is minutes."""


def root() -> Path:
    """The real repository, also in the copies of it in which `dvc exp run` works."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def uri() -> str:
    """`MLFLOW_TRACKING_URI`, else mlflow.db in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root() / 'mlflow.db'}"


def sqlite_file(store: str) -> Path | None:
    """The file of an SQLite store; None for any other."""
    name = store.removeprefix(SQLITE)
    return None if name in (store, "", ":memory:") else Path(name.partition("?")[0])


def is_of_repository(path: Path) -> bool:
    """Whether an SQLite store is the one in the repository, to whose artifacts the repository is home."""
    return path.resolve() == root() / "mlflow.db"


def artifact_location(store: str) -> str | None:
    """Where a new experiment's artifacts go; None where a server decides."""
    if urlparse(store).scheme in ("http", "https", "databricks"):
        return None
    return (root() / "mlartifacts").as_uri()


@contextlib.contextmanager
def environment(values: Mapping[str, str], override: bool = False) -> Iterator[None]:
    """Set environment variables for a while; those that the user has set stay, unless overridden."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: v for name, v in values.items() if override or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def without_password(text: str) -> str:
    """The text with the passwords of addresses in it masked."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def say(stage: str, text: str) -> None:
    """Tell the user in one line, beside a progress bar too; without passwords."""
    line = without_password(" ".join(text.split()))
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        tqdm.write(f"prunecast {stage}: {line}", file=sys.stderr)


def check_metrics(run: str, metrics: Mapping[str, Any]) -> None:
    """Raise ValueError unless every metric is a finite number; the message names those that are not."""
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"metric {name!r} of run {run!r} is {value!r}; expected a finite number")


def param_text(value: Any) -> str:
    """A parameter's value as MLflow keeps it: text of a limited length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 1] + "…"


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted names, e.g. `evaluate.importance.samples`."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: param_text(value)}
    flat: dict[str, str] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def predictor_requirements() -> list[str]:
    """What it takes to load a predictor. MLflow's own guess takes seconds and names other packages."""
    versions = _versions("xgboost-cpu", "xgboost", "scikit-learn", "scipy", "pandas", "numpy")
    versions |= _versions("safetensors", "pydantic", "PyYAML")
    if "xgboost-cpu" in versions:
        versions.pop("xgboost", None)
    return _pinned(versions)


def model_requirements() -> list[str]:
    """What it takes to load a Hugging Face folder and generate with it."""
    return _pinned(_versions("torch", "transformers", "tokenizers", "safetensors", "jinja2", "accelerate"))


def _versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _pinned(versions: Mapping[str, str]) -> list[str]:
    """Requirements of exact versions, without what marks a local build, such as +cpu, which no index has."""
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
