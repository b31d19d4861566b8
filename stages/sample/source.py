"""Where a model's files are, and its shape, found without loading weights or torch."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from stages.architecture import ModelShape
from stages.config.params import ModelSection
from stages.families import Description, describe
from stages.files import InputError, located, unreadable
from stages.sample.hub import refusal
from stages.sample.links import leaves
from stages.sample.packaged import is_gguf, packaged_gguf


@dataclass(frozen=True)
class ModelSource:
    """A located model: a GGUF file, or a folder in the hub's format (config.json + safetensors).

    The folder of a model of the hub is its snapshot in the hub's cache, where weights may be missing yet.
    """

    name: str
    kind: Literal["gguf", "folder", "hub"]
    path: Path


def locate(model: ModelSection) -> ModelSource:
    """Find the files of `model.source`.

    Only the configuration of a hub model is fetched here; weights come with `evaluate`.

    Raises:
        InputError: nothing is there, and the message lists what is; or the name is of no user, or too long.
    """
    if model.source.startswith("package:"):
        return ModelSource(model.source, "gguf", packaged_gguf(model.source.removeprefix("package:")))
    path = located(model.source, key="model.source ")
    if is_gguf(path):
        if not path.is_file():
            raise InputError(f"model.source is {model.source!r}, but there is no such file. {_nearby(path)}")
        return ModelSource(model.source, "gguf", path)
    if path.is_dir():
        config = path / "config.json"
        if config.exists() or config.is_symlink():
            return ModelSource(model.source, "folder", path)
        refuse_adapter(path, model.source)
        raise InputError(f"model.source is the folder {model.source!r}, which has no config.json")
    if model.source.count("/") == 1 and not model.source.startswith((".", "/", "~")):
        return ModelSource(model.source, "hub", _hub_config(model).parent)
    raise InputError(f"model.source is {model.source!r}, but there is no such folder. {_nearby(path)}")


def refuse_adapter(folder: Path, source: str) -> None:
    """Refuse a folder that holds an adapter (LoRA and its kind) in the place of a model.

    Raises:
        InputError: it does.
    """
    if any(
        (folder / f"adapter_{name}").exists() for name in ("config.json", "model.safetensors", "model.bin")
    ):
        raise InputError(
            f"model.source {source!r} holds an adapter (LoRA or its kind: adapter_config.json), not a model. "
            "Load it with peft, merge it into its base with `merge_and_unload()`, save that with "
            "`save_pretrained`, and give the new folder"
        )


def _hub_config(model: ModelSection) -> Path:
    from huggingface_hub import hf_hub_download, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every try; what came of them is said below
    try:
        return Path(hf_hub_download(model.source, "config.json", revision=model.revision))
    except Exception as error:
        try:
            cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
        except CacheNotFound:
            cached = []
        raise InputError(
            f"model.source is {model.source!r}: no such local folder, and the Hugging Face hub did not "
            f"serve its config.json (revision {model.revision or 'main'}): {refusal(error, model)}. "
            f"Models in the local hub cache: {', '.join(cached) or 'none'}. "
            "Give a hub id, a local folder, a .gguf file or package:NAME"
        ) from error
    finally:
        logger.setLevel(level)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    there = [p.name for p in sorted(folder.iterdir()) if (p / "config.json").is_file() or is_gguf(p)]
    return f"Models in {folder}: {', '.join(there) or 'none'}"


def read_config(source: ModelSource) -> dict[str, Any]:
    """The model's configuration under the names of Hugging Face's config.json."""
    if source.kind == "gguf":
        return _gguf_config(source.path)
    path = source.path / "config.json"
    if reason := unreadable(path):
        raise InputError(f"{path} {reason}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON of a configuration: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not valid JSON of a configuration: it holds a {type(found).__name__}")
    return found


def _gguf_config(path: Path) -> dict[str, Any]:
    from stages.sample import gguf_header

    header = gguf_header.read_header(path)
    found = gguf_header.configuration(header)
    gguf_header.check_tokens(header)
    return found


def read_model(model: ModelSection) -> Description:
    """What the configuration of `model.source` says of the model.

    Raises:
        InputError: the model is not there, its family is unknown, a piece of it is not supported, or its
            configuration is damaged.
    """
    return describe(read_config(locate(model)), model.source)


def read_shape(model: ModelSection) -> ModelShape:
    """The shape of `model.source`, from its configuration alone; raises as `read_model` does."""
    return read_model(model).shape


def read_licence(source: ModelSource) -> str:
    """The licence that the model's files state, or ``unknown``: for the model card of what is made of it."""
    if source.kind == "gguf":
        from stages.sample.gguf_header import read_header

        return str(read_header(source.path).fields.get("general.license", "unknown"))
    return str(read_card(source.path).get("license") or "unknown")


def read_card(folder: Path) -> dict[str, Any]:
    """The front matter of a model's card; empty where there is none that can be read."""
    card = folder / "README.md"
    if not card.is_file() or leaves(card, folder):
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return {}
    try:
        front = yaml.safe_load(text.removeprefix("---\n").partition("\n---")[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}
