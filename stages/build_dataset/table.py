"""The table of pairs: one row an architecture, with features, targets and split, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.build_dataset.features import Features, is_damage
from stages.files import DamagedError, InputError, atomically, digest
from stages.metrics.registered import metric_of
from stages.sample.designs import FEWEST_PAIRS, SINGLE_SITE, Designed, held_out_of

SCHEMA, VERSION = "prunecast.pairs", 2
ID_COLUMNS = ("architecture", "design", "split")
TRAIN, HELD_OUT = "train", "held-out"


def build(
    designed: Sequence[Designed],
    metrics: Mapping[str, Mapping[str, float]],
    features: Features,
    targets: Sequence[str],
    seed: int,
    held_out: float,
) -> pd.DataFrame:
    """Join architectures with what was measured of them (`metrics`, by architecture id).

    The split is drawn over the pairs in the order of their ids, so it depends on the seed and
    on which architectures there are, not on the order in which they were measured. Pairs of the
    single-site design are always trained on: features are made of what they measured.

    Raises:
        InputError: an architecture was not measured, or a value is out of range; it is named.
    """
    # Two baselines can be one architecture, e.g. at budgets too mild for any attention width: one pair.
    distinct = {d.architecture.id: d for d in reversed(designed)}
    ordered = [distinct[architecture_id] for architecture_id in sorted(distinct)]
    missing = [d.architecture.id for d in ordered if d.architecture.id not in metrics]
    if missing:
        raise InputError(
            f"the journal lacks {len(missing)} of {len(ordered)} architectures in this context, "
            f"the first is {missing[0]}; run `dvc repro evaluate`"
        )
    drawn = [i for i, d in enumerate(ordered) if d.design != SINGLE_SITE]
    order = np.random.default_rng(seed).permutation(len(drawn))
    count, trained = held_out_of(len(drawn), held_out)
    if min(count, trained) < FEWEST_PAIRS:
        raise InputError(
            f"{len(drawn)} pairs with build_dataset.held_out {held_out:g} leave {count} held out and "
            f"{trained} to train on; expected at least {FEWEST_PAIRS} each. Sample more architectures"
        )
    split = np.full(len(ordered), TRAIN, dtype=object)
    split[[drawn[i] for i in order[:count]]] = HELD_OUT
    table = pd.DataFrame(
        {
            "architecture": [d.architecture.id for d in ordered],
            "design": [d.design for d in ordered],
            "split": split,
        }
    ).astype("string")
    values = features.matrix([d.architecture for d in ordered])
    found = [{t: metrics[d.architecture.id].get(t, float("nan")) for t in targets} for d in ordered]
    table = pd.concat([table, pd.DataFrame(values, columns=features.names), pd.DataFrame(found)], axis=1)
    check(table, features.names, targets)
    return table


def check(table: pd.DataFrame, features: Sequence[str], targets: Sequence[str]) -> None:
    """Raise InputError, naming the row, unless columns, types and ranges are those of the schema."""
    expected = [*ID_COLUMNS, *features, *targets]
    if list(table.columns) != expected:
        odd = sorted(set(table.columns).symmetric_difference(expected)) or ["their order"]
        raise InputError(f"the table of pairs has other columns than expected: {', '.join(odd[:5])}")
    for column in (*features, *targets):
        if table[column].dtype != np.float64:
            raise InputError(f"column {column} of the pairs is {table[column].dtype}; expected float64")
        low, high = _bounds(column) if column in features else metric_of(column).bounds
        values = table[column]
        bad = ~(np.isfinite(values) & (values >= low - 1e-9) & (values <= high + 1e-9))
        if bad.any():
            row = table.loc[bad.idxmax()]
            raise InputError(
                f"architecture {row['architecture']} ({row['design']}): {column} is {row[column]}; "
                f"expected a number from {low:g} to {high:g}. {int(bad.sum())} of {len(table)} rows are bad"
            )
    twice = table.loc[table["architecture"].duplicated(), "architecture"]
    if len(twice):
        raise InputError(f"architecture {twice.iloc[0]} stands in the pairs twice")


def _bounds(feature: str) -> tuple[float, float]:
    return (0.0, 1e4) if is_damage(feature) else (0.0, 1.0)


def write(path: Path, table: pd.DataFrame, features: Sequence[str], targets: Sequence[str]) -> None:
    """Write Parquet that names its schema, its version, its features, its targets and its checksum.

    Raises:
        InputError: the disk does not take the file.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    own = {
        "prunecast.checksum": _checksum(table, features, targets),
        "prunecast.schema": SCHEMA,
        "prunecast.version": str(VERSION),
        "prunecast.features": "\n".join(features),
        "prunecast.targets": "\n".join(targets),
    }
    metadata = {**(arrow.schema.metadata or {}), **{k.encode(): v.encode() for k, v in own.items()}}
    with atomically(path) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary, write_page_checksum=True)


def read(path: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read what `write` wrote: the table, the names of its features and of its targets.

    Raises:
        InputError: the file is missing, damaged, of another schema, or holds bad values.
    """
    again = "run `dvc repro build-dataset`"
    try:
        arrow = pq.read_table(path, page_checksum_verification=True)
        metadata = {k.decode(): v.decode() for k, v in (arrow.schema.metadata or {}).items()}
        table = arrow.to_pandas()
    except Exception as error:  # of damaged bytes pyarrow and pandas raise whatever comes of them
        raise DamagedError(f"{path} cannot be read ({error})", again) from error
    found = (metadata.get("prunecast.schema"), metadata.get("prunecast.version"))
    if found != (SCHEMA, str(VERSION)):
        raise DamagedError(f"{path} has schema and version {found}; expected {(SCHEMA, str(VERSION))}", again)
    features, targets = (
        metadata.get(f"prunecast.{what}", "").split("\n") for what in ("features", "targets")
    )
    if metadata.get("prunecast.checksum") != _checksum(table, features, targets):
        raise DamagedError(f"{path} is damaged (it was altered since it was written)", again)
    check(table, features, targets)
    return table, features, targets


def _checksum(table: pd.DataFrame, features: Sequence[str], targets: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of the names and all values of a table."""
    rows = pd.util.hash_pandas_object(table, index=False)
    return digest([str(name) for name in table.columns], list(features), list(targets), rows.to_list())
