"""Load a model's weights and tokenizer: safetensors or GGUF, never a pickle.

A hub model becomes its snapshot folder, a GGUF file is dequantised once to safetensors in the
cache folder; from there on every model is a folder with config.json and *.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from stages.architecture import ModelShape
from stages.config.params import ModelSection
from stages.evaluate.network.gguf_source import dequantised
from stages.families import BlockRecipe, Description, Family, describe, family_of
from stages.files import InputError
from stages.sample.digests import file_digest
from stages.sample.source import ModelSource, locate, read_config

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
    digest: str
    """SHA-256 of the weight files, the shape and the block recipe: part of every journal key."""


def load(model: ModelSection, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load `model.source` onto the CPU in `dtype`.

    Raises:
        InputError: the model is missing, of an unsupported family, without safetensors, or
            lacks a tensor that its configuration announces.
    """
    opened = _open(model)
    folder, config, described = opened.folder, opened.config, opened.described
    family, shape, recipe = described.family, described.shape, described.recipe
    state = _read(opened.files, dtype, model.source)
    _check_tensors(state, family, recipe, shape, model.source)
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:
        generation = None
    return Checkpoint(
        name=model.source,
        folder=folder,
        shape=shape,
        family=family,
        recipe=recipe,
        context_tokens=described.context_tokens,
        config=config,
        tokenizer=_tokenizer(folder, model),
        generation_config=generation,
        state=state,
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

    @property
    def digest(self) -> str:
        shape, recipe = self.described.shape, self.described.recipe
        return _network_digest(self.files, shape, recipe, self.config)


def _open(model: ModelSection) -> _Opened:
    source = locate(model)
    family_of(read_config(source), model.source)  # before anything is fetched
    folder = _folder(model, source)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    described = describe(config.to_dict(), model.source)
    return _Opened(folder, config, described, _weight_files(folder, model.source))


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The files that hold the model, in transformers' order of preference.

    A hub folder may hold its weights twice, such as shards and a `consolidated.safetensors`.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        if files := sorted(folder.glob("*.safetensors")):
            return files
        raise InputError(
            f"model.source {name!r} has no *.safetensors in {folder.name}; other formats are not "
            "read, because loading a pickle runs code. Convert it with save_pretrained"
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"model.source {name!r}: {index.name} is damaged ({error!r}); fetch the folder again"
        ) from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(
            f"model.source {name!r} lacks {len(missing)} of the {len(shards)} files that {index.name} names, "
            f"the first is {missing[0]}; fetch the folder again"
        )
    return [folder / shard for shard in shards]


def _read(files: list[Path], dtype: torch.dtype, name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            state |= {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
        except SafetensorError as error:
            raise InputError(
                f"model.source {name!r}: {file} is damaged, perhaps cut short ({file.stat().st_size} bytes; "
                f"{error}). Delete it and fetch or write it again; one in the cache folder is made anew "
                "once its folder is deleted"
            ) from error
    return state


def _check_tensors(
    state: Mapping[str, torch.Tensor], family: Family, recipe: BlockRecipe, shape: ModelShape, name: str
) -> None:
    needed = [family.embedding, family.final_norm]
    if not shape.tied_embeddings:
        needed.append(family.head)
    for layer in range(shape.layers):
        prefix = family.layer.format(layer=layer)
        projections = (family.q, family.k, family.v, family.o, family.gate, family.up, family.down)
        norms: tuple[str, ...] = (family.attention_norm, family.mlp_norm)
        norms += (family.q_norm, family.k_norm) if recipe.qk_norm else ()
        needed += [f"{prefix}{part}.weight" for part in (*projections, *norms)]
        biased: tuple[str, ...] = (family.q, family.k, family.v) if recipe.qkv_bias else ()
        biased += (family.o,) if recipe.o_bias else ()
        biased += (family.gate, family.up, family.down) if recipe.mlp_bias else ()
        needed += [f"{prefix}{part}.bias" for part in biased]
    missing = [tensor for tensor in needed if tensor not in state]
    if missing:
        raise InputError(
            f"model.source {name!r} lacks {len(missing)} tensors of the family {family.model_type}, "
            f"the first is {missing[0]}; the folder is incomplete or of another family"
        )


def _folder(model: ModelSection, source: ModelSource) -> Path:
    if source.kind == "gguf":
        return dequantised(source.path)
    if source.path.resolve() == Path(model.source).expanduser().resolve():
        return source.path
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model.source,
            revision=model.revision,
            allow_patterns=_SNAPSHOT,
            ignore_patterns=["consolidated*"],  # the same weights once more
        )
    )


def _tokenizer(folder: Path, model: ModelSection) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    if not tokenizer.is_fast:  # which alone say what text a token covers
        raise InputError(
            f"model.source {model.source!r} has a {type(tokenizer).__name__}, which is written in Python; "
            "expected one with a tokenizer.json. Save it with transformers' "
            "`PreTrainedTokenizerFast` and put the tokenizer.json beside the weights"
        )
    return tokenizer


def _network_digest(files: list[Path], shape: ModelShape, recipe: BlockRecipe, config: Any) -> str:
    rope = getattr(config, "rope_parameters", None)  # the recipe's, and what transformers makes of it
    parts = [_digest(files), asdict(shape), asdict(recipe), rope]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()
