"""Proof that the export is smaller and faster: dense against pruned, in PyTorch and llama.cpp.

The stage `export` makes it of what it has just written, as `export.proof` in params.yaml asks. With more
rounds, of the export that is there (the stage's own files stay as they are):

    python -m stages.export.benchmark.proof [--prompt 512] [--continuation 64] [--rounds 5] [--windows 4]
        [--threads N]

llama.cpp is measured where llama-cpp-python is installed (``pip install prunecast[llama-cpp]``, which
compiles for ten minutes).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from stages.architecture import Architecture
from stages.config.params import ModelSection, Params, ProofSection, load_params
from stages.evaluate.calibrate.memory import SPARE
from stages.evaluate.network import checkpoint
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.device import device_named
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.results import context
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Corpus, Document, load_texts
from stages.export.benchmark import comparison
from stages.export.benchmark.comparison import Comparison, Conditions, Proof
from stages.export.benchmark.runtimes import has_llama_cpp
from stages.export.benchmark.speed import Artifact, Load, References, compare, tensor_bytes
from stages.export.gguf import folder as gguf_folder
from stages.export.weights import huggingface
from stages.files import InputError
from stages.search import outcome
from stages.stage import DATA, command

HERE = DATA / "export"
KL_BAR = 1e-4
"""Most that an F16 file may differ from the float32 folder of the same weights, in nats a token."""
LAUNCHING_BAR = 0.8
"""The part of the time that launching a GPU's kernels may take, and speeds are still the models'."""
_REMEDIES = (
    "A longer prompt (`make proof ARGS='--prompt 2048'`)",
    "A server that batches requests and captures graphs",
)
NOT_INSTALLED = "llama-cpp-python is not installed (pip install '.[llama-cpp]')"


def prove(
    source: ModelSection,
    loaded: Checkpoint,
    export: Path,
    architecture: Architecture,
    load: Load,
    scratch: Path,
) -> Proof:
    """Compare the exports in `export` (its folders ``model`` and ``gguf``) with the dense model's own.

    The dense model is written to `scratch` in the same formats first, by the same code. Nothing of
    `scratch` is left.

    Raises:
        InputError: the exported folder does not hold that architecture.
    """
    start, folder, before = time.perf_counter(), export / "model", torch.get_num_threads()
    _check_current(folder, loaded, architecture)
    dtype = huggingface_dtype(folder)
    if remark := _too_large(loaded, architecture, dtype, load):
        return Proof(remarks=(remark,))
    exported = sorted(p.stem.removeprefix("model-") for p in (export / "gguf").glob("model-*.gguf"))
    types = exported if has_llama_cpp() else []
    remarks = _unmeasured(exported)
    found: list[Comparison] = []
    try:
        remarks += _write_dense(source, loaded, scratch, dtype, types)
        references = References(load, scratch)
        for runtime, weights, name in _pairs(str(dtype).removeprefix("torch."), types):
            if not (scratch / name).exists():
                continue
            print(f"proof: measuring {runtime}, {weights}", flush=True)
            theirs = Artifact(scratch / name, loaded.shape.dense(), scratch / "model")
            ours = Artifact(export / name, architecture, folder)
            try:
                found.append(compare(runtime, weights, theirs, ours, loaded.shape, load, references))
            except (InputError, ValueError) as error:  # a llama.cpp that cannot load the file
                if runtime == "PyTorch":
                    raise
                remarks.append(f"{runtime}, {weights} was not measured: {error}")
    finally:
        torch.set_num_threads(before)  # each runtime takes its own
        shutil.rmtree(scratch, ignore_errors=True)
    return Proof(tuple(found), _conditions(load, start), (*remarks, *_suspicious(found)))


def _write_dense(
    source: ModelSection, loaded: Checkpoint, scratch: Path, dtype: torch.dtype, types: Sequence[str]
) -> list[str]:
    """The dense model in the formats of the export; says what could not be written."""
    shape, dense = loaded.shape, loaded.shape.dense()
    state = DenseNetwork(loaded, torch.device("cpu")).sliced_state(dense, dtype=dtype)
    huggingface.write_folder(
        scratch / "model", state, loaded.config, dense, shape, None, loaded.generation_config, dtype
    )
    lines = gguf_folder.write_folder(scratch / "gguf", source, loaded, state, dense, types)
    return [f"llama.cpp was not measured: the dense model's {k} {v}" for k, v in lines if "not written" in v]


def _too_large(loaded: Checkpoint, architecture: Architecture, dtype: torch.dtype, load: Load) -> str:
    """Why dense and pruned model do not run side by side, or nothing where they do.

    Both are loaded at once, and beside them lie caches and the logits of a window.
    """
    shape = loaded.shape
    both = (shape.total_parameters + architecture.total_parameters(shape)) * dtype.itemsize
    needed = both + 8 * load.windows.shape[1] * shape.vocabulary
    free = psutil.virtual_memory().available
    if load.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    if needed <= SPARE[load.device] * free:
        return ""
    where, other = ("the GPU", "cpu") if load.device == "cuda" else ("memory", "cuda")
    return (
        f"Nothing was measured: dense and pruned model side by side take {needed / 1e9:.1f} GB, and of "
        f"{where} {free / 1e9:.1f} GB are free. Set export.proof.device to {other}, or run `make proof` on a "
        "larger machine."
    )


def _unmeasured(exported: Sequence[str]) -> list[str]:
    if not exported:
        return ["llama.cpp was not measured: no GGUF file was exported."]
    return [] if has_llama_cpp() else [f"llama.cpp was not measured: {NOT_INSTALLED}."]


def _suspicious(found: Sequence[Comparison]) -> list[str]:
    """F16 files of a float32 folder that compute something else, and times that are not the models'."""
    exact = any(c.runtime == "PyTorch" and c.weights == "float32" for c in found)
    remarks = [
        f"{c.name}, {what}: Python took {100 * launching:.0f} % of the time to launch kernels, which the GPU "
        f"ran meanwhile: this speed is transformers', not the models'. {remedy} shows theirs."
        for c in found
        for what, launching, remedy in zip(("prefill", "decode"), c.launching, _REMEDIES, strict=True)
        if launching > LAUNCHING_BAR
    ]
    return remarks + [
        f"The F16 file differs from the folder by {c.pruned.kl:.1e} nats a token; rounding explains "
        f"{KL_BAR:g} in a model of ordinary perplexity. Compare their answers before you ship it."
        for c in found
        if exact and c.weights == "F16" and not c.pruned.kl <= KL_BAR
    ]


def _conditions(load: Load, start: float) -> Conditions:
    return Conditions(
        prompt=len(load.prompt),
        continuation=len(load.continuation),
        rounds=load.rounds,
        windows=load.windows.shape[0],
        window_tokens=load.windows.shape[1],
        text=load.text,
        threads=load.threads,
        machine=platform.processor() or platform.machine(),
        gpu=torch.cuda.get_device_name() if load.device == "cuda" else "",
        seconds=round(time.perf_counter() - start),
    )


def huggingface_dtype(folder: Path) -> torch.dtype:
    """The dtype that a folder's weights are stored in."""
    from transformers import AutoConfig

    from stages.families import register

    register(folder)
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
    expected = architecture.total_parameters(shape)
    if found != expected:
        raise InputError(
            f"{folder} holds {found:,} parameters; architecture {architecture.id} has {expected:,}. "
            "Run `dvc repro` to export the winner of the last search"
        )


def load_of(
    section: Params, loaded: Checkpoint, texts: Mapping[str, Corpus[Document]], asked: ProofSection
) -> Load:
    """Prompt, continuation and windows from the report part of the first text corpus.

    Raises:
        InputError: the text is too short, or prompt and continuation exceed the model's context.
    """
    name, corpus = next(iter(texts.items()))
    documents, where = corpus.parts["report"], f"corpora.texts.{name}, part report,"
    protocol = section.export.measurement.text
    windows = perplexity.windows(documents, loaded.tokenizer, protocol, asked.windows, where).tokens
    together = asked.prompt + asked.continuation
    if together > loaded.context_tokens:
        raise InputError(
            f"export.proof: prompt and continuation are {together} tokens together; expected at most the "
            f"{loaded.context_tokens} of the model's context"
        )
    one = replace(protocol, sequence_length=together, stride=together, bos="none")
    tokens = perplexity.windows(documents, loaded.tokenizer, one, 1, where).tokens[0].tolist()
    threads = asked.threads or torch.get_num_threads()
    device = device_named(asked.device, "export.proof.device")
    prompt, continuation = tokens[: asked.prompt], tokens[asked.prompt :]
    return Load(prompt, continuation, asked.rounds, windows, name, threads, device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default, words in (
        ("prompt", 512, "tokens processed at once"),
        ("continuation", 64, "tokens generated"),
        ("rounds", 5, "rounds that count"),
        ("windows", 4, "windows of text for perplexity"),
    ):
        parser.add_argument(f"--{name}", type=_count, default=default, help=f"{words}; default: {default}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="PyTorch's")
    parser.add_argument("--threads", type=_count, help="default: PyTorch's own number")
    parser.add_argument("--json", type=Path, help="write the figures there too")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def asked_for(arguments: argparse.Namespace) -> ProofSection:
    keys = ProofSection.model_fields
    return ProofSection(**{key: getattr(arguments, key) for key in keys})


def show(proof: Proof, path: Path | None) -> None:
    """Print the table, and write the figures where a path is given."""
    print(comparison.table(proof.comparisons))
    if proof.conditions is not None:
        print(f"\n{proof.conditions.words()}")
    for remark in proof.remarks:
        print(f"\n{remark}")
    if path is not None:
        comparison.write(path, proof)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export.benchmark.proof")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    add_arguments(parser)
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    candidates = outcome.read(DATA / "search" / "outcome.json")
    winner = outcome.candidate_of(candidates, outcome.WINNER).architecture
    searched, weights = DATA / "search" / "context.json", checkpoint.digest_of(params.model)
    context.require_weights(searched, weights, params.model.source)
    loaded = checkpoint.load(params.model)
    load = load_of(params, loaded, load_texts(params.corpora), asked_for(arguments))
    with tempfile.TemporaryDirectory(prefix="prunecast-dense-") as scratch:
        proof = prove(params.model, loaded, HERE, winner, load, Path(scratch) / "dense")
    show(proof, arguments.json)


if __name__ == "__main__":
    command("proof", main)
