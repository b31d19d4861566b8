"""Why a width: what sites add, what the next width costs, in a file and in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.architecture import Architecture, Kind
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.sample.space import options
from stages.search import explain, narrowing
from stages.search.explain import Explanation
from stages.search.rounds import GuidedSearch
from tests.search.test_rounds import COSTS, SEARCH, TRAIN, Meter, guided, truth
from tests.small import SMALL, features_of, random_architectures

WEIGHTS = {"log_ppl.a": 1.0}


def case(folder: Path, kind: str) -> tuple[GuidedSearch, Architecture, list[Explanation]]:
    points = {
        site: [(r, float(cost * r**2)) for r in (0.1, 0.3, 0.6)]
        for site, cost in zip(SMALL.sites(), COSTS, strict=True)
    }
    curves = DamageCurves(points) if "curves" in kind else None
    features = replace(features_of(folder), curves=curves)
    search = replace(guided(features, Meter()), train=TRAIN.model_copy(update={"model": kind}))
    known = {a: truth(a) for a in random_architectures(SMALL, 40)}
    predictor = search.learn(known)
    section = SEARCH.model_copy(
        update={"narrowing": SEARCH.narrowing.model_copy(update={"by": "importance"})}
    )
    sites, space = narrowing.narrowed(section, 4, predictor, features, search.table(known))
    winner = space.project(dict.fromkeys(space.limits, 0.3), 0.25, 0.02, at_least=True)
    return search, winner, explain.explanations(predictor, features, winner, 4, sites, WEIGHTS)


@pytest.mark.parametrize("kind", ["curves+xgboost", "xgboost", "additive+xgboost"])
def test_every_site_is_explained_and_a_file_holds_it(tmp_path: Path, kind: str):
    _, winner, every = case(tmp_path, kind)
    assert [one.site for one in every] == [*SMALL.sites()]
    explain.write(tmp_path / "e.csv", every)
    assert explain.read(tmp_path / "e.csv") == every
    for one in every:
        widths = [o.width for o in options(SMALL, one.site, 4)]
        assert (one.next_price is None) == (one.kept == widths[-1] or one.kept not in widths)
        assert (one.last_price is None) == (one.kept == widths[0] or one.kept not in widths)
        assert one.ratio == winner.site_ratio(SMALL, one.site)
        assert (one.alone is None) == ("curves" not in kind)
    if "curves" in kind:
        assert sorted(one.rank for one in every) == [*range(1, 13)]
        assert all(one.curve > 0 for one in every if one.ratio)


@pytest.mark.parametrize("step", [-1, 1])
def test_prices_are_differences_of_forecasts_a_million_parameters(tmp_path: Path, step: int):
    search, winner, every = case(tmp_path, "curves+xgboost")
    known = {a: truth(a) for a in random_architectures(SMALL, 40)}
    predictor = search.learn(known)
    checked = 0
    for one in every:
        price = one.next_price if step == 1 else one.last_price
        if price is None or one.site.kind is not Kind.MLP:
            continue
        widths = [list(w) for w in winner.to_json()]
        widths[one.site.layer][2] -= 4 * step
        other = Architecture.from_json(widths)
        values = predictor.forecast(search.features.matrix([winner, other]))["log_ppl.a"]
        parameters = winner.kept_parameters(SMALL) - other.kept_parameters(SMALL)
        assert price == pytest.approx(1e6 * (values[1] - values[0]) / parameters)
        checked += 1
    assert checked


def test_words_name_the_parts_and_the_price(tmp_path: Path):
    _, _, every = case(tmp_path, "curves+xgboost")
    one = replace(
        next(e for e in every if e.ratio), curve=0.25, pairs=-0.05, trees=0.01, next_price=9e5, last_price=1.5
    )
    said = " ".join(explain.words(one, every))
    assert "it adds +0.2100 to the forecast objective: +0.2500 by its damage curve, -0.0500 by" in said
    assert "Its last cut cost 1.5000 a million parameters. Its next cut would cost 900000.0000" in said
    assert said.endswith("so it stays.")
    between = replace(one, next_price=None)
    assert explain.words(between, every)[-1] == "Its width lies between two."
    gone = replace(between, kept=tuple(0 for _ in one.kept))
    assert explain.words(gone, every)[-1] == "There is nothing left to cut."


def test_a_damaged_row_is_named(tmp_path: Path):
    path = tmp_path / "explained.csv"
    _, _, every = case(tmp_path, "xgboost")
    explain.write(path, every)
    path.write_text(path.read_text().replace("3.mlp", "third mlp"))
    with pytest.raises(InputError, match=r"explained.csv: the row of third mlp is damaged"):
        explain.read(path)
