"""Proof that the export is smaller and faster: dense against pruned, in PyTorch and llama.cpp.

    python -m stages.export.proof [--prompt 512] [--continuation 64] [--rounds 5] [--windows 4]

Writes data/export/proof.json and prints it as a table. It is no part of the stage `export`, whose outputs
are the same every time. llama.cpp is measured where llama-cpp-python is installed
(``pip install prunecast[llama-cpp]``, which compiles for ten minutes).
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from stages import params
from stages.architecture import Architecture
from stages.evaluate import checkpoint, perplexity
from stages.evaluate.checkpoint import Checkpoint
from stages.evaluate.corpora import load_texts
from stages.evaluate.elastic import ElasticNetwork
from stages.export import gguf_folder, huggingface
from stages.export.evidence import same_architecture
from stages.export.runtimes import has_llama_cpp
from stages.export.speed import Artifact, Comparison, Figures, Load, compare, tensor_bytes
from stages.files import InputError, write_json
from stages.params import Model, Params
from stages.search import outcome
from stages.stage import DATA

SCHEMA, VERSION = "prunecast.proof", 1
HERE = DATA / "export"
KL_BAR = 1e-4
"""Most that an F16 file may differ from the folder of the same weights, in nats a token."""


def prove(
    source: Model, loaded: Checkpoint, export: Path, architecture: Architecture, load: Load, scratch: Path
) -> list[Comparison]:
    """Compare the exports in `export` (its folders ``model`` and ``gguf``) with the dense model's own.

    The dense model is written to `scratch` in the same formats first, by the same code.

    Raises:
        InputError: the exported folder does not hold that architecture.
    """
    folder, shape = export / "model", loaded.shape
    _check_current(folder, loaded, architecture)
    dtype = huggingface_dtype(folder)
    types = sorted(p.stem.removeprefix("model-") for p in (export / "gguf").glob("model-*.gguf"))
    types = types if has_llama_cpp() else []
    dense, state = shape.dense(), ElasticNetwork(loaded, torch.device("cpu")).sliced_state(shape.dense())
    huggingface.write_folder(
        scratch / "model", state, loaded.config, dense, shape, None, loaded.generation_config, dtype
    )
    gguf_folder.write_folder(scratch / "gguf", source, loaded, state, dense, types)
    del state
    found = []
    for runtime, weights, name in _pairs(str(dtype).removeprefix("torch."), types):
        print(f"measuring {runtime}, {weights}", file=sys.stderr, flush=True)
        theirs = Artifact(scratch / name, dense, scratch / "model")
        ours = Artifact(export / name, architecture, folder)
        found.append(compare(runtime, weights, theirs, ours, shape, load))
    return found


def huggingface_dtype(folder: Path) -> torch.dtype:
    """The dtype that a folder's weights are stored in."""
    from transformers import AutoConfig

    from stages.export import modeling_prunecast

    modeling_prunecast.register()
    dtype = AutoConfig.from_pretrained(folder).dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _pairs(dtype: str, types: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    yield "PyTorch", dtype, "model"
    for kind in types:
        yield "llama.cpp", kind, f"gguf/model-{kind}.gguf"


def _check_current(folder: Path, loaded: Checkpoint, architecture: Architecture) -> None:
    """Raise InputError unless the folder's weights are as many as the architecture keeps."""
    sizes = tensor_bytes(folder)
    itemsize = huggingface_dtype(folder).itemsize if sizes else 1
    found, shape = sum(sizes.values()) // itemsize, loaded.shape
    expected = architecture.kept_parameters(shape) + shape.total_parameters - shape.decoder_parameters
    if found != expected:
        raise InputError(
            f"{folder} holds {found:,} parameters; architecture {architecture.id} has {expected:,}. "
            "Run `dvc repro` to export the winner of the last search"
        )


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons in Markdown; speeds as median (minimum to maximum)."""
    rows = [
        "| runtime | model | parameters | on disk | memory | prefill, tokens/s | decode, tokens/s "
        "| perplexity | KL to the folder |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    ]
    for c in comparisons:
        for name, figures in (("dense", c.dense), ("pruned", c.pruned)):
            rows.append(f"| {c.runtime} {c.weights} | {name} | {_cells(figures)} |")
    rows.append(
        "\n| runtime | prefill: times as fast | ideal | of the ideal | decode: times as fast | ideal "
        "| of the ideal |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for c in comparisons:
        parts = [
            f"{speedup} | {ideal:.3f} | {speedup.median / ideal:.2f}"
            for speedup, ideal in (
                (c.prefill_speedup, c.ideal_prefill),
                (c.decode_speedup, c.ideal_decode),
            )
        ]
        rows.append(f"| {c.runtime} {c.weights} | {' | '.join(parts)} |")
    return "\n".join(rows)


def _cells(figures: Figures) -> str:
    return " | ".join(
        (
            f"{figures.parameters / 1e6:.1f} M",
            f"{figures.size_bytes / 1e6:.1f} MB",
            f"{figures.memory_bytes / 1e6:.0f} MB",
            str(figures.prefill),
            str(figures.decode),
            f"{figures.perplexity:.3f}",
            f"{figures.kl:.1e}",
        )
    )


def write(path: Path, comparisons: Sequence[Comparison], load: Load, text: str) -> None:
    """Write the comparisons and how they were measured; sizes in bytes, speeds in tokens a second."""
    protocol = {
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "prompt_tokens": len(load.prompt),
        "continuation_tokens": len(load.continuation),
        "rounds": load.rounds,
        "text": text,
        "windows": list(load.windows.shape),
    }
    rows = [asdict(comparison) for comparison in comparisons]
    write_json(path, SCHEMA, VERSION, {"protocol": protocol, "comparisons": rows})


def load_of(section: Params, loaded: Checkpoint, arguments: argparse.Namespace) -> Load:
    """Prompt, continuation and windows from the report part of the first text corpus.

    Raises:
        InputError: the text is too short.
    """
    name, corpus = next(iter(load_texts(section.corpora).items()))
    documents, where = corpus.parts["report"], f"corpora.texts.{name}, part report,"
    protocol = section.export.measurement.text
    windows = perplexity.windows(documents, loaded.tokenizer, protocol, arguments.windows, where).tokens
    together = arguments.prompt + arguments.continuation
    one = replace(protocol, sequence_length=together, stride=together)
    tokens = perplexity.windows(documents, loaded.tokenizer, one, 1, where).tokens[0].tolist()
    return Load(tokens[: arguments.prompt], tokens[arguments.prompt :], arguments.rounds, windows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", type=int, default=512, help="tokens processed at once; default: 512")
    parser.add_argument("--continuation", type=int, default=64, help="tokens generated; default: 64")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--windows", type=int, default=4, help="windows of text for perplexity; default: 4")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export.proof")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        section = params.load(arguments.params)
        winner = same_architecture(outcome.read(DATA / "search" / "outcome.json"), outcome.WINNER)
        loaded = checkpoint.load(section.model)
        load = load_of(section, loaded, arguments)
        with tempfile.TemporaryDirectory(dir=HERE, prefix=".dense-") as scratch:
            found = prove(section.model, loaded, HERE, winner, load, Path(scratch))
    except InputError as error:
        print(f"prunecast proof: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    write(HERE / "proof.json", found, load, next(iter(section.corpora.texts)))
    print(table(found))
    if not has_llama_cpp():
        print("\nllama.cpp was not measured: llama-cpp-python is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
