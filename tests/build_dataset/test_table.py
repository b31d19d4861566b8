"""The table of pairs: join, split, checks that name the row, and the Parquet file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.files import InputError
from stages.sample.designs import Designed
from tests.small import SMALL, features_of, random_architectures

TARGETS = ["log_ppl.wiki", "quiz.log_likelihood", "quiz.accuracy"]
MADE = [Designed(a, "free") for a in random_architectures(SMALL, 20)]
METRICS = {
    d.architecture.id: {
        "log_ppl.wiki": 3 + i / 10,
        "quiz.log_likelihood": -2 - i / 10,
        "quiz.accuracy": i / 20,
        "ppl.wiki": 1e9,
    }
    for i, d in enumerate(MADE)
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("features"))


def build(
    features: Features, made: list[Designed] = MADE, seed: int = 0, held_out: float = 0.3
) -> pd.DataFrame:
    return table.build(made, METRICS, features, TARGETS, seed, held_out)


def test_every_architecture_meets_its_own_measurement(features: Features):
    pairs = build(features)
    assert len(pairs) == 20
    for made in MADE:
        (row,) = pairs[pairs["architecture"] == made.architecture.id].to_dict("records")
        assert row["design"] == "free"
        assert {t: row[t] for t in TARGETS} == {t: METRICS[made.architecture.id][t] for t in TARGETS}
        assert row["overall_ratio"] == pytest.approx(made.architecture.overall_ratio(SMALL))
        assert [row[name] for name in features.names] == features.row(made.architecture).tolist()


def test_the_split_is_seven_to_three(features: Features):
    assert build(features)["split"].value_counts().to_dict() == {"train": 14, "held-out": 6}
    assert build(features, held_out=0.5)["split"].value_counts().to_dict() == {"train": 10, "held-out": 10}


def test_pairs_of_single_sites_are_always_trained_on(features: Features):
    made = [replace(d, design="single-site") if i < 8 else d for i, d in enumerate(MADE)]
    for seed in range(5):
        pairs = build(features, made, seed)
        assert (pairs.loc[pairs["design"] == "single-site", "split"] == "train").all()
        assert (pairs["split"] == "held-out").sum() == round(0.3 * 12)


def test_the_split_depends_on_the_seed_and_not_on_the_order(features: Features):
    first = build(features)
    pd.testing.assert_frame_equal(build(features, MADE[::-1]), first)
    assert build(features, seed=1)["split"].tolist() != first["split"].tolist()


def test_more_measurements_than_asked_for_are_left_out(features: Features):
    assert set(build(features, MADE[:10])["architecture"]) == {d.architecture.id for d in MADE[:10]}


def test_a_missing_architecture_is_named(features: Features):
    gone = sorted(d.architecture.id for d in MADE)[3]
    metrics = {key: value for key, value in METRICS.items() if key != gone}
    with pytest.raises(
        InputError, match=rf"lacks 1 of 20 architectures .* the first is {gone}; run `dvc repro"
    ):
        table.build(MADE, metrics, features, TARGETS, 0, 0.3)


@pytest.mark.parametrize(("count", "held_out"), [(3, 0.3), (20, 0.01), (20, 0.99)])
def test_a_split_without_enough_pairs_is_told(features: Features, count: int, held_out: float):
    with pytest.raises(InputError, match=rf"{count} pairs with build_dataset\.held_out {held_out:g} leave"):
        build(features, MADE[:count], held_out=held_out)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("log_ppl.wiki", float("nan"), "0 to 50"),
        ("log_ppl.wiki", float("inf"), "0 to 50"),
        ("log_ppl.wiki", -0.5, "0 to 50"),
        ("log_ppl.wiki", 60.0, "0 to 50"),
        ("quiz.log_likelihood", 0.5, "-10000 to 0"),
        ("quiz.accuracy", 1.2, "0 to 1"),
        ("quiz.accuracy", -0.1, "0 to 1"),
    ],
)
def test_a_bad_measurement_is_named_with_its_row(
    features: Features, column: str, value: float, expected: str
):
    victim = MADE[7].architecture.id
    metrics = {**METRICS, victim: {**METRICS[victim], column: value}}
    with pytest.raises(InputError) as caught:
        table.build(MADE, metrics, features, TARGETS, 0, 0.3)
    message = str(caught.value)
    assert message.startswith(
        f"architecture {victim} (free): {column} is {value}; expected a number from {expected}"
    )
    assert "1 of 20 rows are bad" in message


def test_a_target_that_was_not_measured_is_named(features: Features):
    with pytest.raises(InputError, match=r"log_ppl\.other is nan; .* 20 of 20 rows are bad"):
        table.build(MADE, METRICS, features, ["log_ppl.other"], 0, 0.3)


def test_an_architecture_of_two_designs_is_one_pair_of_the_first(features: Features):
    again = Designed(MADE[2].architecture, "simple")
    pd.testing.assert_frame_equal(build(features, [*MADE, again]), build(features))
    first = build(features, [again, *MADE]).set_index("architecture")
    assert first.loc[again.architecture.id, "design"] == "simple"


def _text(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(**{"log_ppl.wiki": pairs["log_ppl.wiki"].astype(str)})


def _float32(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(overall_ratio=pairs["overall_ratio"].astype(np.float32))


def _lost(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.drop(columns="ratio.mlp")


def _extra(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(guess=1.0)


def _shuffled(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs[pairs.columns[::-1]]


def _beyond(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(overall_ratio=pairs["overall_ratio"] + 1)


def _twice(pairs: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([pairs, pairs.tail(1)], ignore_index=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_twice, r"architecture [0-9a-f]{12} stands in the pairs twice"),
        (_text, r"column log_ppl\.wiki of the pairs is \w+; expected float64"),
        (_float32, "column overall_ratio of the pairs is float32; expected float64"),
        (_lost, r"other columns than expected: ratio\.mlp"),
        (_extra, "other columns than expected: guess"),
        (_shuffled, "other columns than expected: their order"),
        (_beyond, r"overall_ratio is 1\.\d+; expected a number from 0 to 1"),
    ],
)
def test_a_spoilt_table_is_refused_and_when_read_too(
    features: Features, tmp_path: Path, spoil: Callable[[pd.DataFrame], pd.DataFrame], says: str
):
    pairs = spoil(build(features))
    with pytest.raises(InputError, match=says):
        table.check(pairs, features.names, TARGETS)
    path = tmp_path / "pairs.parquet"
    table.write(path, pairs, features.names, TARGETS)
    with pytest.raises(InputError, match=says):
        table.read(path)


def test_what_is_written_is_read(features: Features, tmp_path: Path):
    pairs = build(features)
    path = tmp_path / "deep" / "pairs.parquet"
    table.write(path, pairs, features.names, TARGETS)
    back, names, targets = table.read(path)
    pd.testing.assert_frame_equal(back, pairs)
    assert (names, targets) == (features.names, TARGETS)
    assert [p.name for p in path.parent.iterdir()] == ["pairs.parquet"]


def test_the_file_is_the_same_each_time(features: Features, tmp_path: Path):
    for name in ("a", "b"):
        table.write(tmp_path / name, build(features), features.names, TARGETS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_damaged_and_foreign_files(features: Features, tmp_path: Path):
    path = tmp_path / "pairs.parquet"
    with pytest.raises(InputError, match=r"pairs\.parquet cannot be read .* run `dvc repro build-dataset`"):
        table.read(path)
    table.write(path, build(features), features.names, TARGETS)
    whole = path.read_bytes()
    # cut off, no Parquet at all, a broken footer, broken pages
    middle = len(whole) // 2
    for spoilt in (
        whole[:middle],
        b"text",
        b"",
        whole[:-400] + bytes(392) + whole[-8:],
        whole[:4] + bytes(range(256)) * 8 + whole[4 + 2048 :],
    ):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="cannot be read"):
            table.read(path)


@pytest.mark.parametrize(
    ("key", "value"), [("prunecast.schema", "other"), ("prunecast.version", "99"), ("prunecast.schema", None)]
)
def test_another_schema_or_version_is_refused(
    features: Features, tmp_path: Path, key: str, value: str | None
):
    path = tmp_path / "pairs.parquet"
    table.write(path, build(features), features.names, TARGETS)
    arrow = pq.read_table(path)
    metadata = {k: v for k, v in arrow.schema.metadata.items() if k != key.encode()}
    if value is not None:
        metadata[key.encode()] = value.encode()
    pq.write_table(arrow.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=r"has schema and version .*; expected \('prunecast\.pairs', '2'\)"):
        table.read(path)
