"""Load a model's weights and tokenizer: safetensors or GGUF, never a pickle.

A hub model becomes its snapshot folder, a GGUF file is dequantised once to safetensors in the
cache folder; from there on every model is a folder with config.json and *.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from stages.architecture import ModelShape
from stages.config.params import ModelSection
from stages.evaluate.network.gguf_source import dequantised
from stages.evaluate.network.tensors import read_tensors, untie
from stages.evaluate.network.tokenizer import load_tokenizer
from stages.families import BlockRecipe, Description, Family, describe, register_pruned
from stages.files import InputError
from stages.sample.digests import file_digest
from stages.sample.hub import refusal
from stages.sample.source import ModelSource, locate, read_config
from stages.sample.weight_check import check_source, check_tensors
from stages.sample.weight_files import INDEX, Stored, is_fetched, note, read_headers, weight_files

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SNAPSHOT = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Checkpoint:
    """A dense model: its tensors under their Hugging Face names, and what belongs to them."""

    name: str
    folder: Path
    shape: ModelShape
    family: Family
    recipe: BlockRecipe
    context_tokens: int
    """The longest sequence that the model was made for and is run on."""
    config: Any  # transformers.PretrainedConfig
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    generation_config: GenerationConfig | None
    state: Mapping[str, torch.Tensor]
    stored: Stored
    """Where each tensor lies in the folder's files."""
    digest: str
    """SHA-256 of the weight files, the shape and the block recipe: part of every journal key."""

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Tensors out of the files again, on the CPU in `dtype`."""
        return read_tensors(self.folder, {name: self.stored[name] for name in names}, dtype, self.name)


def load(model: ModelSection, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load `model.source` onto the CPU in `dtype`.

    Raises:
        InputError: the model is missing, of an unsupported family, without safetensors, or quantised; its
            tensors are not those that its configuration announces; or a weight is not finite.
    """
    opened = _open(model)
    folder, described = opened.folder, opened.described
    tokenizer = load_tokenizer(folder, model, described.shape.vocabulary)
    state = read_tensors(folder, opened.tensors, dtype, model.source)
    untie(state, described, model.source)
    return Checkpoint(
        name=model.source,
        folder=folder,
        shape=described.shape,
        family=described.family,
        recipe=described.recipe,
        context_tokens=described.context_tokens,
        config=opened.config,
        tokenizer=tokenizer,
        generation_config=_generation_config(folder, model.source),
        state=state,
        stored={name: opened.tensors[name] for name in state},
        digest=opened.digest,
    )


def digest_of(model: ModelSection) -> str:
    """The digest of `load`'s checkpoint, before a tensor is loaded; raises as `load` does."""
    return _open(model).digest


@dataclass(frozen=True)
class _Opened:
    """A model whose files are here, before a tensor is loaded."""

    folder: Path
    config: Any
    described: Description
    files: list[Path]
    tensors: Stored

    @property
    def digest(self) -> str:
        shape, recipe = self.described.shape, self.described.recipe
        return _network_digest(self.files, shape, recipe, self.config)


def _open(model: ModelSection) -> _Opened:
    source = locate(model)
    check_source(source, model, describe(read_config(source), model.source))  # before anything is fetched
    folder = _folder(model, source)
    config = read_config(ModelSource(model.source, "folder", folder))
    described = describe(config, model.source)
    register_pruned(config, model.source)
    files = weight_files(folder, model.source)
    tensors = check_tensors(config, described, read_headers(files, model.source), model.source)
    return _Opened(folder, _configuration(folder, model, described), described, files, tensors)


def _configuration(folder: Path, model: ModelSection, described: Description) -> Any:
    """The configuration as transformers reads it: what weights are exported with.

    Raises:
        InputError: transformers refuses it, or understands another network than `described`.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        understood = describe(config.to_dict(), model.source)
    except InputError:
        raise
    except Exception as error:  # whatever its checks and its own code raise
        raise InputError(
            f"model.source {model.source!r}: transformers refuses its config.json: {_last_line(error)}"
        ) from error
    ours, theirs = ({**asdict(d.shape), **asdict(d.recipe)} for d in (described, understood))
    if unlike := [key for key in ours if ours[key] != theirs[key]]:
        raise InputError(
            f"model.source {model.source!r}: transformers reads another {unlike[0]} out of config.json "
            f"({theirs[unlike[0]]}) than Prunecast ({ours[unlike[0]]}); write out the keys that it leaves to "
            "defaults"
        )
    return config


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"


def _generation_config(folder: Path, name: str) -> GenerationConfig | None:
    """What generation_config.json says, as far as transformers would write it again with the export.

    Of one that sets, say, a temperature without sampling, the token ids alone are kept, and that is said.
    """
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        found = GenerationConfig.from_pretrained(folder)
        try:
            found.validate(strict=True)
        except ValueError as error:
            reason = str(error).partition("- ")[2].partition(" -- ")[0]
            note(f"model.source {name!r}: of its generation_config.json only token ids are kept: {reason}")
            kept = {k: v for k, v in found.to_dict().items() if k in _TOKEN_IDS}
            found = GenerationConfig.from_dict(kept)
            found.validate(strict=True)
        return found
    except Exception as error:  # whatever its checks raise
        raise InputError(
            f"model.source {name!r}: transformers refuses its generation_config.json: {_last_line(error)}. "
            "Mend or delete it"
        ) from error


def _folder(model: ModelSection, source: ModelSource) -> Path:
    if source.kind == "gguf":
        return dequantised(source.path)
    if source.kind == "folder":
        return source.path
    return _fetched(model, source.path)


def _fetched(model: ModelSection, folder: Path) -> Path:
    """The snapshot of a hub model, whole; `folder` has its configuration."""
    from huggingface_hub import snapshot_download

    def fetch(dry_run: bool) -> Any:
        return snapshot_download(
            model.source,
            revision=model.revision,
            allow_patterns=_SNAPSHOT,
            ignore_patterns=["consolidated*"],  # the same weights once more
            dry_run=dry_run,
        )

    try:
        folder = Path(fetch(dry_run=False))
        if _lacks_weights(folder):  # either it has none, or what is cached is all that can be had
            fetch(dry_run=True)  # which fails where the hub cannot be asked
        return folder
    except Exception as error:  # of the hub, of the network, of the disk
        raise InputError(
            f"model.source {model.source!r}: its configuration is in the hub's cache, its weights are not or "
            f"in part ({folder}), and the Hugging Face hub did not serve them (revision "
            f"{model.revision or 'main'}): {refusal(error, model)}"
        ) from error


def _lacks_weights(folder: Path) -> bool:
    """Whether a snapshot is surely not whole: without an index nobody knows how many files there are."""
    index = folder / INDEX
    told = index.exists() or index.is_symlink() or not any(p.is_file() for p in folder.glob("*.safetensors"))
    return told and not is_fetched(folder)


def _network_digest(files: list[Path], shape: ModelShape, recipe: BlockRecipe, config: Any) -> str:
    rope = getattr(config, "rope_parameters", None)  # the recipe's, and what transformers makes of it
    parts = [_digest(files), shape.to_json(), recipe.to_json(), rope]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        for found in pool.map(file_digest, files):
            digest.update(bytes.fromhex(found))
    return digest.hexdigest()
