"""Export another architecture of the search than the winner: a finalist, or one of the front.

    python -m stages.export.by_id ID FOLDER

ID stands in data/search/front.csv and data/search/outcome.json. FOLDER, which must not be there, gets
`model`, loaded and compared with the measured network as the winner's is, and `gguf`. What
`export.recovery` asks for is done to it too. The final table, the report and the model card are the winner's
alone.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.config.params import Params, load_params
from stages.evaluate.workbench import open_workbench
from stages.export.base_model import read_base_model
from stages.export.results.record import MODEL
from stages.export.weights.export import export_weights, weights_of
from stages.export.weights.recover import recover
from stages.files import OF_THE_DISK, InputError, writing
from stages.search import outcome
from stages.search.outcome import Candidate
from stages.stage import DATA, command


def find(candidates: Sequence[Candidate], architecture_id: str) -> Candidate:
    """The measured candidate of that id.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    for candidate in candidates:
        if candidate.architecture.id == architecture_id:
            return candidate
    there = ", ".join(f"{c.architecture.id} ({c.name}, {c.overall_ratio:.3f})" for c in candidates)
    raise InputError(f"the search measured no architecture {architecture_id}; it measured {there}")


def run(params: Params, architecture_id: str, folder: Path) -> None:
    """Write and prove `folder`.

    Raises:
        InputError: the architecture is unknown, the folder is there already, or the model's weights are not
            those that the search measured.
    """
    candidate = find(outcome.read(DATA / "search" / "outcome.json"), architecture_id)
    if folder.exists():
        raise InputError(f"{folder} is there already; name a folder that is not")
    searched = DATA / "search" / "context.json"
    bench = open_workbench(params, DATA / "evaluate", measured=searched, own_weights=1)
    with writing(folder, OF_THE_DISK):
        folder.mkdir(parents=True)
        dtype = getattr(torch, params.export.dtype)
        if params.export.recovery.method == "none":
            weights = weights_of(bench, candidate)
        else:
            (after,) = recover(bench, [candidate])
            weights = after.weights
            print(f"Recovery: {after.words}", flush=True)
        export_weights(bench, weights, folder / MODEL, dtype)
        for file in read_base_model(params.model).terms:
            shutil.copy(file, folder / MODEL)
    print(f"{100 * candidate.overall_ratio:.2f} % pruned: {folder / MODEL}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export.by_id")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("id", help="of an architecture in data/search/front.csv or outcome.json")
    parser.add_argument("folder", type=Path, help="to write into; must not be there")
    arguments = parser.parse_args()
    run(load_params(arguments.params), arguments.id, arguments.folder)


if __name__ == "__main__":
    command("export", main)
