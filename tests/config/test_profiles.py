"""Profiles: every committed one loads, the paper's holds the paper's figures, and a switch loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from stages.config import profiles
from stages.config.params import load_params
from stages.files import InputError
from stages.sample.designs import all_designs
from stages.sample.space import prunable_sites
from tests.small import LLAMA2_7B, REPOSITORY

COMMITTED = profiles.find(REPOSITORY)
PAPER = load_params(COMMITTED["paper"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The default active, the paper beside it."""
    shutil.copy(COMMITTED["default"], tmp_path / "params.yaml")
    shutil.copy(COMMITTED["paper"], tmp_path / "params.paper.yaml")
    return tmp_path


@pytest.mark.parametrize("name", COMMITTED)
def test_every_committed_profile_loads_and_bears_its_name(name: str):
    loaded = load_params(COMMITTED[name])
    assert loaded.profile == name
    assert loaded.model_dump(mode="json") == yaml.safe_load(COMMITTED[name].read_text(encoding="utf-8"))


def test_both_profiles_are_there():
    assert {"default", "paper"} <= set(COMMITTED)


def test_the_profile_of_the_paper_samples_as_the_paper():
    """arXiv 2309.09507: 54 dimensions, ratios 0.1 to 0.5, 400 bundled and 125 free architectures."""
    assert PAPER.model.source == "meta-llama/Llama-2-7b-hf"
    sites = prunable_sites(LLAMA2_7B, PAPER.sample.first_layers_kept, PAPER.sample.last_layers_kept)
    assert len(sites) == 54
    assert (sites[0].layer, sites[-1].layer) == (3, 29)
    assert PAPER.sample.ratios == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert (PAPER.sample.bundle, PAPER.sample.spread, PAPER.sample.single_site_ratios) == (4, 0, [])
    designs = [d.design for d in all_designs(LLAMA2_7B, PAPER.sample, PAPER.budget)]
    assert (designs.count("bundled"), designs.count("free")) == (400, 125)
    assert len(designs) == 525 + 3  # dense, uniform, simple


def test_the_profile_of_the_paper_measures_learns_and_searches_as_the_paper():
    evaluate, section = PAPER.evaluate, PAPER.search
    assert evaluate.importance == "taylor"
    assert (evaluate.calibration.samples, evaluate.calibration.sequence_length) == (10, 128)
    assert evaluate.reconstruction.method == "none"
    assert PAPER.build_dataset.held_out == 0.3
    assert PAPER.train_predictor.model == "xgboost"
    assert (section.trials, section.rounds, section.per_round, section.finalists) == (10_000, 1, 18, 18)
    assert (section.min_distance, section.repair_again, section.front) == (1, False, [])
    assert round(section.narrowing.sensitive * 54) == 16  # attention of layers 3-6, 11-18, 26-29
    assert round(section.narrowing.insensitive * 54) == 14  # both kinds in layers 19-25
    assert section.narrowing.sensitive_ratios == [0.1, 0.3]
    assert section.narrowing.insensitive_ratios == [0.2, 0.7]
    for measurement in (evaluate.measurement, section.measurement, PAPER.export.measurement):
        text = measurement.text
        assert (measurement.protocol, text.sequence_length, text.stride) == ("llm-pruner", 128, 128)
        assert (measurement.windows, measurement.questions, measurement.question_tokens) == (None, None, None)
        assert measurement.question_formats == ["letter"]


def test_a_switch_and_back_keeps_the_edits_of_both(folder: Path):
    default, paper = folder / "params.yaml", folder / "params.paper.yaml"
    default.write_text(default.read_text().replace("overall_ratio: 0.25 ", "overall_ratio: 0.31 "))
    edited = default.read_bytes()
    assert profiles.switch("paper", folder)
    assert load_params(folder / "params.yaml") == PAPER
    assert [p.name for p in profiles.find(folder).values()] == ["params.yaml", "params.default.yaml"]
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("free: 125", "free: 12"))
    assert profiles.switch("default", folder)
    assert default.read_bytes() == edited
    assert load_params(paper).sample.free == 12
    assert sorted(p.name for p in folder.iterdir()) == ["params.paper.yaml", "params.yaml"]


def test_the_active_profile_is_left_alone(folder: Path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert not profiles.switch("default", folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_switch_killed_half_way_is_finished_by_the_next(folder: Path):
    (folder / "params.yaml").rename(folder / "params.default.yaml")
    assert profiles.switch("paper", folder)
    assert list(profiles.find(folder)) == ["paper", "default"]


@pytest.mark.parametrize(
    ("file", "old", "new", "wanted", "words"),
    [
        ("params.paper.yaml", "free: 125", "free: many", "paper", "sample.free is 'many'; expected"),
        ("params.paper.yaml", "profile: paper", "profile: mine", "paper", "rename it params.mine.yaml"),
        ("params.yaml", "profile: default", "profile: paper", "paper", "both are the profile 'paper'"),
        ("params.yaml", "profile: default", "", "paper", "profile is None; expected a name"),
        ("params.yaml", "budget:", "budget: [", "paper", "params.yaml is not valid YAML"),
        ("params.yaml", "", "", "papier", "no profile 'papier'; there are: default, paper"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_moved(
    folder: Path, file: str, old: str, new: str, wanted: str, words: str
):
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=words):
        profiles.switch(wanted, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
