"""Small shapes, importance scores and params sections for tests that need no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.build_dataset.features import Features
from stages.config import profiles
from stages.config.budget import Budget
from stages.config.params import load_params
from stages.evaluate.results.scores import UnitScores

REPOSITORY = Path(__file__).parents[1]
SMOLLM2 = ModelShape("llama", 30, 576, 3, 3, 64, 1536, 49152, tied_embeddings=True)
LLAMA2_7B = ModelShape("llama", 32, 4096, 32, 1, 128, 11008, 32000, tied_embeddings=False)
LLAMA31_8B = ModelShape("llama", 32, 4096, 8, 4, 128, 14336, 128256, tied_embeddings=False)
SMALL = ModelShape("llama", 6, 24, 2, 3, 4, 64, 100, tied_embeddings=False)

PARAMS = profiles.find(REPOSITORY)["default"]
"""The file of the default profile, whichever is active."""
COMMITTED = load_params(PARAMS)
"""The committed params; tests take a section and replace what they are about."""


def budget_of(**changes: Any) -> Budget:
    """The committed budget with some keys changed."""
    return Budget(**COMMITTED.budget.model_dump() | changes)


@st.composite
def shapes(draw: st.DrawFn, min_layers: int = 1, unlike: bool = False) -> ModelShape:
    """Shapes of dense models, some of them, if `unlike`, with layers of unlike widths."""
    flags = st.booleans()
    shape = ModelShape(
        family="llama",
        layers=draw(st.integers(min_layers, 6)),
        hidden=draw(st.integers(4, 64)),
        kv_groups=draw(st.integers(1, 4)),
        heads_per_group=draw(st.integers(1, 4)),
        head_dim=draw(st.integers(2, 16)),
        channels=draw(st.integers(4, 96)),
        vocabulary=draw(st.integers(10, 500)),
        tied_embeddings=draw(flags),
        qkv_bias=draw(flags),
        o_bias=draw(flags),
        mlp_bias=draw(flags),
        qk_norm=draw(flags),
    )
    return draw(unlike_shapes_of(shape)) if unlike and draw(flags) else shape


def unlike_shapes_of(shape: ModelShape) -> st.SearchStrategy[ModelShape]:
    """Shapes of the model pruned: at least one layer keeps all."""

    def pruned(widths: list[LayerWidth]) -> ModelShape:
        return replace(shape, unlike=(*widths, shape.widest))

    layers = shape.layers - 1
    return st.lists(widths_of(shape), min_size=layers, max_size=layers).map(pruned)


def widths_of(shape: ModelShape) -> st.SearchStrategy[LayerWidth]:
    return st.builds(
        LayerWidth,
        st.integers(0, shape.kv_groups),
        st.integers(0, shape.heads_per_group),
        st.integers(0, shape.channels),
    )


def architectures_of(shape: ModelShape) -> st.SearchStrategy[Architecture]:
    widths = st.lists(widths_of(shape), min_size=shape.layers, max_size=shape.layers)
    return widths.map(lambda found: Architecture(tuple(found)))


def random_architectures(shape: ModelShape, count: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    tops = [shape.kv_groups, shape.heads_per_group, shape.channels]
    widths = rng.integers(0, [t + 1 for t in tops], (count, shape.layers, 3))
    return [Architecture.from_json(rows) for rows in widths.tolist()]


def write_scores(path: Path, shape: ModelShape, seed: int = 0) -> dict[str, np.ndarray]:
    """Random importance scores in the layout that `evaluate` writes."""
    rng = np.random.default_rng(seed)
    sizes = {
        "groups": (shape.layers, shape.kv_groups),
        "heads": (shape.layers, shape.kv_groups, shape.heads_per_group),
        "channels": (shape.layers, shape.channels),
    }
    scores = {name: rng.exponential(size=size).astype(np.float32) for name, size in sizes.items()}
    UnitScores(**scores).save(path, "key")
    return scores


def features_of(folder: Path, shape: ModelShape = SMALL, band: int = 2, seed: int = 0) -> Features:
    path = folder / "importance.safetensors"
    write_scores(path, shape, seed)
    return Features.of_model(shape, band, path)
