"""What can never be met is refused before anything is paid for, with its key; what may not be is told."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import ModelShape
from stages.config.params import Narrowing, Params
from stages.families import Description, describe
from stages.families.family import usual_settings
from stages.files import InputError
from stages.sample import feasibility, timing
from stages.sample.feasibility import Request, check
from stages.sample.narrowings import narrowings
from stages.sample.space import Space
from tests.small import COMMITTED, SMALL, SMOLLM2, shapes

BASE: dict[str, Any] = {
    "budget": {"overall_ratio": 0.25, "tolerance": 0.03},
    "sample": {"first_layers_kept": 1, "last_layers_kept": 0, "mlp_granularity": 8, "spread": 6},
    "evaluate": {"calibration": {"samples": 4, "sequence_length": 32, "conversations": 0}},
    "search": {"trials": 40, "rounds": 1, "per_round": 2, "finalists": 2},
    "train_predictor": {"folds": 2},
}


def described(shape: ModelShape, **settings: Any) -> Description:
    config = {"model_type": shape.family, **usual_settings(shape), "max_position_embeddings": 2048}
    return describe(config | settings, "a model")


def params_of(**changes: Any) -> Params:
    """The committed params made small, with dotted keys changed, ``__`` standing for the dot."""
    content = COMMITTED.model_dump()
    for section, values in BASE.items():
        content[section] |= copy.deepcopy(values)
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = content
        for part in sections:
            place = place[part]
        place[key] = value
    return Params.model_validate(content)


def asked(shape: ModelShape = SMALL, **changes: Any) -> list[str]:
    """What is told of params that ask for no further overall ratio, unless `changes` do."""
    return check(Request(params_of(**{"search__front": [], **changes}), described(shape)))


WIDE = {"sensitive_ratios": [0.0, 1.0], "insensitive_ratios": [0.0, 1.0], "other_ratios": [0.0, 1.0]}
MILD = {"sensitive_ratios": [0.0, 0.1], "insensitive_ratios": [0.0, 0.2], "other_ratios": [0.0, 0.1]}
HALF = {
    "sensitive": 0.5,
    "sensitive_ratios": [0.0, 0.1],
    "insensitive": 0.5,
    "insensitive_ratios": [0.0, 1.0],
}


def narrowing(**changes: Any) -> dict[str, Any]:
    return COMMITTED.search.narrowing.model_dump() | changes


NEVER: list[tuple[str, dict[str, Any]]] = [
    ("budget.overall_ratio is 0.25; the narrowed space reaches", {"search__narrowing": narrowing(**MILD)}),
    ("search.front is 0.9; the narrowed space reaches", {"search__front": [0.9]}),
    ("budget.overall_ratio is 0.9; expected a number from", {"budget__overall_ratio": 0.9}),
    ("sample.spread_overall_ratios is [0.9, 0.95]", {"sample__spread_overall_ratios": [0.9, 0.95]}),
    ("no architecture of this space lies", {"budget__tolerance": 1e-4, "budget__overall_ratio": 0.2503}),
    ("budget.tolerance is 0.004, and a step", {"budget__tolerance": 0.004}),
    ("search.trials is 1, and search.per_round 2", {"search__trials": 1}),
    ("build_dataset.held_out is 0.01", {"build_dataset__held_out": 0.01}),
    ("build_dataset.held_out is 0.99", {"build_dataset__held_out": 0.99}),
    ("evaluate.calibration.sequence_length is 4096 tokens", {"evaluate__calibration__sequence_length": 4096}),
    ("export.measurement.sequence_length is 2049", {"export__measurement__sequence_length": 2049}),
    ("search.measurement.sequence_length is 8192",
     {"search__measurement__protocol": "evopress", "search__measurement__sequence_length": None}),
    ("export.proof.prompt + continuation is 2064 tokens", {"export__proof__prompt": 2048}),
    ("budget.latency.prompt + continuation is 4128 tokens",
     {"budget__latency__prompt": 4096, "budget__prefill_ms": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("says", "changes"), NEVER, ids=[says[:40] for says, _ in NEVER])
def test_what_can_never_be_met_is_refused_with_its_key(says: str, changes: dict[str, Any]):
    with pytest.raises(InputError) as caught:
        asked(**changes)
    assert f"params.yaml: {says}" in str(caught.value)


NOTES: list[tuple[str, dict[str, Any]]] = [
    ("which sites are sensitive decides",
     {"search__narrowing": narrowing(**HALF), "budget__overall_ratio": 0.5}),
    ("train_predictor.folds is 50", {"train_predictor__folds": 50}),
    ("search.finalists is 99", {"search__finalists": 99}),
    ("export.proof.threads is 1024", {"export__proof__threads": 1024}),
    ("no whole blocks of 32", {"export__gguf": ["Q8_0"]}),
]  # fmt: skip


@pytest.mark.parametrize(("says", "changes"), NOTES, ids=[says[:40] for says, _ in NOTES])
def test_what_may_not_be_met_is_told_once(says: str, changes: dict[str, Any]):
    base: dict[str, Any] = {"export__gguf": [], "sample__spread_site_ratios": [0.0, 0.9]}
    assert asked(**base) == []
    (note,) = asked(**base | changes)
    assert note.startswith("note: ")
    assert says in note


def test_the_committed_params_are_possible():
    assert check(Request(COMMITTED, described(SMOLLM2))) == []


def test_everything_that_cannot_be_met_is_told_at_once():
    with pytest.raises(InputError) as caught:
        asked(
            export__gguf=[],
            search__trials=1,
            export__proof__prompt=10**6,
            evaluate__calibration__sequence_length=10**6,
        )
    assert len(str(caught.value).split("\n")) == 3


@pytest.mark.parametrize("limited", [False, True], ids=["ratio", "bytes"])
def test_a_budget_beyond_all_mlps_leaves_the_simple_baseline_out_and_says_so(limited: bool):
    shape = ModelShape("llama", 4, 32, 8, 1, 8, 32, 100, tied_embeddings=False)  # attention is most of it
    ratio: dict[str, Any] = {"budget__overall_ratio": 0.7}
    if limited:
        size = 4 * (shape.outside_parameters + int(0.3 * shape.decoder_parameters))
        ratio = {"budget__overall_ratio": None, "budget__size_bytes": size}
    wide: dict[str, Any] = {
        "search__narrowing": narrowing(**WIDE),
        "sample__first_layers_kept": 0,
        "export__gguf": [],
    }
    params = params_of(**ratio, **wide, budget__tolerance=0.1)
    request = Request(params, described(shape))
    assert any("no baseline 'simple'" in note for note in check(request))
    assert [d.design for d in request.designed[:3]] == ["dense", "uniform", "spread"]


PUBLISHED = {  # hidden, layers, heads, key-value heads, head size, MLP, vocabulary, tied
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True),
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 16, 32, 8, 64, 8192, 128256, True),
    "meta-llama/Llama-3.2-3B": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "TinyLlama/TinyLlama_v1.1": ("llama", 2048, 22, 32, 4, 64, 5632, 32000, False),
}


def published(name: str) -> dict[str, Any]:
    """The config.json of a model that was published."""
    family, hidden, layers, heads, groups, head_dim, channels, vocabulary, tied = PUBLISHED[name]
    return {
        "model_type": family, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
        "intermediate_size": channels, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }  # fmt: skip


@pytest.mark.parametrize("ratio", [0.2, 0.25, 0.3])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_pass_with_the_default_params(name: str, ratio: float):
    budget = COMMITTED.budget.model_copy(update={"overall_ratio": ratio})
    params = COMMITTED.model_copy(update={"budget": budget})
    request = Request(params, describe(published(name), name))
    notes = check(request)
    assert len(request.designed) >= 3 + 0.8 * COMMITTED.sample.spread
    ratios = [d.architecture.overall_ratio(request.shape) for d in request.designed if d.design == "spread"]
    assert 0.1 <= min(ratios) < 0.13
    assert max(ratios) > 0.2
    assert all("spread_overall_ratios" in note or "which sites are sensitive" in note for note in notes)


@pytest.mark.parametrize(("family", "tied"), [("qwen3", False), ("qwen3", True), ("llama", False)])
def test_a_family_that_llama_cpp_does_not_hold_is_refused_while_gguf_is_asked_for(family: str, tied: bool):
    shape = replace(SMALL, family=family, qk_norm=family == "qwen3", tied_embeddings=tied)
    assert asked(shape, export__gguf=[]) == []
    if family == "qwen3" and not tied:
        with pytest.raises(InputError, match=r"export\.gguf is \['F16'\].*qwen3 normalises"):
            asked(shape, export__gguf=["F16"])
    else:
        assert asked(shape, export__gguf=["F16"]) == []


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "has_gpu", lambda: False)
    with pytest.raises(InputError, match=r"evaluate\.device is 'cuda'"):
        asked(evaluate__device="cuda")
    monkeypatch.setattr(timing, "has_gpu", lambda: True)
    assert asked(evaluate__device="cuda", export__gguf=[]) == []


def test_limits_in_bytes_that_the_narrowed_space_cannot_or_may_not_meet():
    size = 4 * (SMALL.outside_parameters + int(0.5 * SMALL.decoder_parameters))
    limit: dict[str, Any] = {"budget__overall_ratio": None, "budget__size_bytes": size, "export__gguf": []}
    limit |= {"sample__spread_site_ratios": [0.0, 0.9]}
    assert asked(**limit, search__narrowing=narrowing(**WIDE)) == []
    with pytest.raises(InputError, match=r"budget\.size_bytes is .*; the smallest .*whichever sites"):
        asked(**limit, search__narrowing=narrowing(**MILD))
    (note,) = asked(**limit, search__narrowing=narrowing(**HALF))
    assert "which sites are sensitive decides" in note


def test_more_rounds_than_a_small_space_has_architectures_are_refused():
    shape = ModelShape("llama", 2, 24, 1, 1, 4, 32, 100, tied_embeddings=False)
    changes: dict[str, Any] = {
        "sample__first_layers_kept": 0,
        "search__per_round": 30,
        "budget__tolerance": 0.1,
    }
    changes |= {"search__narrowing": narrowing(**WIDE), "search__trials": 100}
    with pytest.raises(InputError, match=r"measure 30 architectures, and within .* there are \d+\."):
        asked(shape, **changes)


@settings(deadline=None, max_examples=40)
@given(
    shape=shapes(min_layers=2, unlike=True),
    fractions=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    ends=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)), min_size=3, max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_no_ranking_of_sites_reaches_beyond_the_extremes(
    shape: ModelShape, fractions: tuple[float, float], ends: list[tuple[float, float]], order: Any
):
    """Any ranking: its space lies between the least and the greatest of `narrowings`."""
    keys = ("sensitive_ratios", "insensitive_ratios", "other_ratios")
    section = Narrowing(
        by="damage", sensitive=fractions[0], insensitive=fractions[1],
        **{key: list(pair) for key, pair in zip(keys, ends, strict=True)},
    )  # fmt: skip
    extremes = [space.reachable() for space in narrowings(shape, 4, shape.sites(), section)]
    sites = list(shape.sites())
    order.shuffle(sites)
    first, last = section.counts(len(sites))
    classes = [0] * first + [2] * (len(sites) - first - last) + [1] * last
    intervals = {site: ends[c] for site, c in zip(sites, classes, strict=True)}
    low, high = Space(shape, 4, intervals).reachable()
    lows, highs = zip(*extremes, strict=True)
    assert min(lows) - 1e-9 <= low <= max(lows) + 1e-9
    assert min(highs) - 1e-9 <= high <= max(highs) + 1e-9


def test_every_question_stands_in_one_table():
    tables = (feasibility.OF_PARAMS, feasibility.OF_BUDGET, feasibility.OF_DESIGNS)
    asked_there = list(itertools.chain(*tables))
    written = [
        thing for thing in vars(feasibility).values()
        if callable(thing) and "Iterator[Finding]" in str(getattr(thing, "__annotations__", {}).get("return"))
    ]  # fmt: skip
    assert sorted(map(str, asked_there)) == sorted(map(str, written))
