"""Write an architecture's weights as a Hugging Face folder and GGUF files, and prove what was written."""

from __future__ import annotations

from pathlib import Path

import torch

from stages.evaluate.network.weights import PrunedNetwork, PrunedWeights
from stages.evaluate.workbench import Workbench
from stages.export.gguf import folder as gguf_folder
from stages.export.results.record import GGUF
from stages.export.weights import check
from stages.export.weights.huggingface import write_folder
from stages.files import InputError
from stages.search.outcome import Candidate


def weights_of(bench: Workbench, candidate: Candidate) -> PrunedWeights:
    """The weights that the search measured of a candidate.

    Raises:
        InputError: the params or the model of today would make others.
    """
    made = bench.weights(candidate.architecture, again=bool(candidate.weights))
    if candidate.weights not in ("", made.digest):
        raise InputError(
            f"the search measured architecture {candidate.architecture.id} with the weights "
            f"{candidate.weights}, and today's params and model make {made.digest} of it; run `dvc repro`, "
            "which measures them"
        )
    return made


def export_weights(
    bench: Workbench, weights: PrunedWeights, folder: Path, dtype: torch.dtype
) -> list[tuple[str, str]]:
    """Write the weights' folder and GGUF files, and prove that the folder computes what they do.

    Lines for the report are returned.
    """
    loaded, state, architecture = bench.checkpoint, weights.make(dtype), weights.architecture
    write_folder(
        folder, state, loaded.config, architecture, loaded.shape,
        loaded.tokenizer, loaded.generation_config, dtype,
    )  # fmt: skip
    documents = next(iter(bench.texts.values())).parts["selection"]
    some = "\n\n".join(document.text for document in documents[:100])
    tokens = torch.tensor([loaded.tokenizer(some, add_special_tokens=False)["input_ids"][:256]])
    network = PrunedNetwork(architecture, state, bench.exact, one_at_a_time=True)
    difference = check.logit_difference(folder, network, tokens)
    print(
        f"export: the model loads in a fresh process; largest logit difference from the measured network "
        f"{difference:.2e} on {tokens.numel()} tokens ({str(dtype).removeprefix('torch.')} weights)",
        flush=True,
    )
    check.check(difference, dtype)
    params = bench.params
    files = gguf_folder.write_folder(
        folder.parent / GGUF, params.model, loaded, state, architecture, params.export.gguf
    )
    for label, result in files:
        print(f"export: {label} {result}", flush=True)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return [
        ("loads with from_pretrained in a fresh process", "yes"),
        ("largest logit difference", f"{difference:.2e} (allowed {check.TOLERANCE[dtype]:g})"),
        ("weights on disk", f"{size / 1e6:.1f} MB in {str(dtype).removeprefix('torch.')}"),
        *files,
    ]
