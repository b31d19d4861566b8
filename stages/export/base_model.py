"""What the model that was pruned is called, where it comes from, and on which terms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from stages.config.params import ModelSection
from stages.export.results.record import BaseModel
from stages.sample.gguf_header import read_header, stem
from stages.sample.hub import refusal
from stages.sample.links import leaves
from stages.sample.packaged import package_files
from stages.sample.source import ModelSource, locate, read_card, read_licence

TERMS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "*TERMS*")
"""Files that whoever passes a model on has to pass on with it."""


_REPOSITORIES = (
    "general.source.huggingface.repository",
    "general.source.url",
    "general.source.repo_url",
    "general.repo_url",
    "general.url",
)
"""Keys of a GGUF header that may name what it was made from, the best first."""
_CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""A folder in the hub's own cache."""


def hub_id(found: Any) -> str | None:
    """The hub's name in a repository's address or name, if it is one."""
    name = str(found or "").removeprefix("https://huggingface.co/").strip("/")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def read_base_model(model: ModelSection) -> BaseModel:
    """Read what the base model's own files say of it.

    Raises:
        InputError: the model is not there.
    """
    source = locate(model)
    if source.kind == "gguf":
        return _of_gguf(source)
    if source.kind == "folder":
        path = source.path.resolve()
        of_hub = _CACHED.search(str(path))
        known = f"{of_hub[1]}/{of_hub[2]}" if of_hub else None
        return _of_folder(of_hub[2] if of_hub else path.name, "a local folder", source.path, known)
    revision = model.revision or "main"
    origin = f"{model.source} on the Hugging Face hub, revision {revision}"
    folder = _hub_folder(model, revision) or source.path
    return _of_folder(model.source.partition("/")[2], origin, folder, model.source)


def _hub_folder(model: ModelSection, revision: str) -> Path | None:
    """The model's card and terms, which are fetched where the hub answers; None where it does not."""
    try:
        return Path(snapshot_download(model.source, revision=revision, allow_patterns=["README.md", *TERMS]))
    except Exception as error:  # of the hub, of the network, of the disk: no export is lost to a card
        print(
            f"export: the hub did not serve the card of {model.source}: {refusal(error, model)}", flush=True
        )
        return None


def _of_folder(name: str, origin: str, folder: Path, known: str | None) -> BaseModel:
    """What a folder says; the hub's name of an export of ours is that of what was pruned first."""
    licence = read_licence(ModelSource(name, "folder", folder))
    front = read_card(folder)
    languages = front.get("language") or ()
    ours = "prunecast" in (front.get("tags") or ())
    return BaseModel(
        name=name,
        origin=origin,
        licence=str(front.get("license_name") or licence) if licence == "other" else licence,
        languages=(languages,) if isinstance(languages, str) else tuple(str(x) for x in languages),
        hub_id=known or (hub_id(front.get("base_model")) if ours else None),
        terms=tuple(_terms(folder)),
    )


def _terms(folder: Path) -> Iterator[Path]:
    for path in sorted({path for pattern in TERMS for path in folder.glob(pattern) if path.is_file()}):
        if leaves(path, folder):
            print(
                f"export: {path.name} is a link out of the model's folder, to {path.resolve()}: it is not "
                "passed on. Put the file itself there if it is the model's",
                flush=True,
            )
        else:
            yield path


def _of_packaging(path: Path) -> bool:
    """Whether a file of a package says something of the package, not of what is in it."""
    return any(part.endswith(".dist-info") for part in path.parts)


def _of_gguf(source: ModelSource) -> BaseModel:
    from gguf import LlamaFileType

    field = read_header(source.path).fields.get
    package = source.name.removeprefix("package:")
    origin, terms = f"the file {source.path.name}", []
    if package != source.name:
        origin += f" in the Python package {package} {metadata.version(package)}"
        inside = [path for path in package_files(package) if not _of_packaging(path) and path.is_file()]
        terms = [path for path in inside if any(fnmatch(path.name, pattern) for pattern in TERMS)]
    if organisation := field("general.organization"):
        origin += f", by {organisation}"
    kinds: dict[Any, str] = {kind.value: kind.name for kind in LlamaFileType}
    stored = kinds.get(field("general.file_type"), "F32").removeprefix("MOSTLY_").removeprefix("ALL_")
    return BaseModel(
        name=re.sub(rf"[.-]{re.escape(stored)}$", "", stem(source.path), flags=re.IGNORECASE),
        origin=origin,
        licence=read_licence(source),
        languages=tuple(field("general.languages") or ()),
        hub_id=next((i for key in _REPOSITORIES if (i := hub_id(field(key)))), None),
        terms=tuple(terms),
        quantisation=None if stored in ("F32", "F16", "BF16") else stored,
    )
