"""The folder of GGUF files: all that were asked for and a README, or a README that says why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import ModelSection
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.layers import apart
from stages.export.gguf.fields import Fields, UnsupportedError
from stages.export.gguf.tokenizer import copied, departures, derived
from stages.export.gguf.writer import PrunedModel, write_file
from stages.families import llama_cpp
from stages.files import write_text
from stages.sample.gguf_header import stem
from stages.sample.source import locate

_QUANTISATION = re.compile(r"[.-](I?Q\d\w*|B?F16|F32)$", re.IGNORECASE)
_README = """# {name}, for llama.cpp

{body}
"""
_HOW_TO_RUN = """Every file is the whole model with its tokenizer and chat template:

{files}

    llama-server -m {first}

Layers differ in width, which llama.cpp reads in files of the architecture `deci`, and of `openelm` with norms
of queries and keys; where all are alike it is `llama`. The report has speed, memory and perplexity beside the
dense model's, where measured."""
_DEPARTURES = """

llama.cpp tokenises otherwise than transformers:

{departures}"""


def gguf_model(
    source: ModelSection, loaded: Checkpoint, state: Mapping[str, Tensor], architecture: Architecture
) -> PrunedModel:
    """What a GGUF file of that architecture is made from.

    Raises:
        UnsupportedError: llama.cpp does not compute such a model, or the tokenizer cannot be derived.
    """
    if reason := llama_cpp.refusal(loaded.shape, loaded.recipe):
        raise UnsupportedError(reason)
    ratio = architecture.overall_ratio(loaded.shape)
    located = locate(source)
    base = stem(located.path) if located.kind == "gguf" else Path(source.source).name
    name = _QUANTISATION.sub("", base) + (f", {100 * ratio:.0f} % pruned" if ratio else "")
    tokenizer = _tokenizer(source, loaded.tokenizer, loaded.shape.vocabulary)
    for index, width in enumerate(architecture.widths):
        state = apart(state, loaded.family, loaded.shape, index, width)
    return PrunedModel(name, state, loaded.recipe, loaded.config, architecture, loaded.shape, tokenizer)


def _tokenizer(source: ModelSection, tokenizer: Any, rows: int) -> Fields:
    located = locate(source)
    return copied(located.path) if located.kind == "gguf" else derived(tokenizer, rows)


def write_folder(
    folder: Path,
    source: ModelSection,
    loaded: Checkpoint,
    state: Mapping[str, Tensor],
    architecture: Architecture,
    types: Sequence[str],
) -> list[tuple[str, str]]:
    """Write ``model-TYPE.gguf`` for every type, and a README, into a new folder.

    What llama.cpp cannot hold is no error: the folder then says so, and the export goes on.

    Returns:
        Lines for the report: what was written and how large it is, or why nothing was.
    """
    folder.mkdir(parents=True)
    lines, readme = _write(folder, source, loaded, state, architecture, types)
    write_text(folder / "README.md", readme)
    return lines


def _write(
    folder: Path,
    source: ModelSection,
    loaded: Checkpoint,
    state: Mapping[str, Tensor],
    architecture: Architecture,
    types: Sequence[str],
) -> tuple[list[tuple[str, str]], str]:
    title = "The pruned model"
    if not types:
        return [], _README.format(name=title, body="`export.gguf` in params.yaml asks for no file.")
    lines = []
    try:
        model = gguf_model(source, loaded, state, architecture)
        title = model.name
        for kind in types:
            path = folder / f"model-{kind}.gguf"
            write_file(path, model, kind)
            lines.append((f"GGUF {kind}", f"{path.stat().st_size / 1e6:.1f} MB"))
    except UnsupportedError as error:
        for path in folder.glob("*.gguf"):
            path.unlink()
        reason = f"not written: {error}"
        return [("GGUF", reason)], _README.format(name=title, body=f"No file was written: {error}.")
    files = "\n".join(f"- `model-{kind}.gguf`: {size}" for kind, (_, size) in zip(types, lines, strict=True))
    body = _HOW_TO_RUN.format(files=files, first=f"model-{types[0]}.gguf")
    if locate(source).kind != "gguf" and (found := departures(loaded.tokenizer)):
        body += _DEPARTURES.format(departures="\n".join(f"- {words}" for words in found))
        lines.append(("GGUF tokenizer", "llama.cpp tokenises otherwise: " + "; ".join(found)))
    return lines, _README.format(name=title, body=body)
